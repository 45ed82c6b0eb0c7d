"""`homoalign bench NAME`: one benchmark a module, peers side by side in the same run."""

from jobs.bench.command import bench_command

__all__ = ["bench_command"]
