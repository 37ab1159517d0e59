"""Made the checkpoint beside this file (torch 2.14.1, CPU): `python make.py FOLDER`; two processes, DTensor."""

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

warnings.filterwarnings("ignore")
child = os.fork()
rank = 0 if child else 1
dist.init_process_group("gloo", init_method=f"file://{Path(sys.argv[1]).resolve()}.store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).reshape(5, 7)
state = {
    "rows": distribute_tensor(whole, mesh, [Shard(0)]),
    "columns": distribute_tensor(whole, mesh, [Shard(1)]),
    "same": distribute_tensor(whole, mesh, [Replicate()]),
    "step": 3,
}
dcp.save(state, checkpoint_id=sys.argv[1])
dist.barrier()
dist.destroy_process_group()
if child:
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
