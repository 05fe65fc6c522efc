"""What the subcommands of `cli.py` do; nothing else imports this package."""
