"""Read and write .nemo model archives, without torch."""
