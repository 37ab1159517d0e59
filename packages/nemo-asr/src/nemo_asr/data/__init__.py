"""Speech data: manifests, audio, data sets (single files and tar shards), samplers, augmentation, loaders."""
