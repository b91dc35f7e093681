"""What a run file will do, stage by stage, and what cannot work: said before anything is paid for."""

from pocketvlm.plan.lines import check, plan

__all__ = ["check", "plan"]
