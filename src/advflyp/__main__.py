"""`python -m advflyp`, for launchers that start modules: `torchrun --nproc-per-node 8 -m advflyp train …`."""

from advflyp.cli.main import main

main()
