"""Optimizers and schedules by NVIDIA's names and keys."""

from nemo_expmgr.optim.adafactor import Adafactor
from nemo_expmgr.optim.adan import Adan
from nemo_expmgr.optim.novograd import Novograd
from nemo_expmgr.optim.optimizers import available_optimizers, build_optimizer, register_optimizer
from nemo_expmgr.optim.schedules import available_schedulers, build_schedule, register_scheduler, schedule_steps

__all__ = [
    "Adafactor",
    "Adan",
    "Novograd",
    "available_optimizers",
    "available_schedulers",
    "build_optimizer",
    "build_schedule",
    "register_optimizer",
    "register_scheduler",
    "schedule_steps",
]
