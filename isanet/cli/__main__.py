"""`python -m isanet.cli`."""

from isanet.cli.run import main

raise SystemExit(main())
