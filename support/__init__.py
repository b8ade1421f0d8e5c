"""What the script leans on: settings, downloads, the run directory. Nothing here knows the network."""


class UserError(Exception):
    """Something its user can put right. The message is one sentence: what is wrong, where, what to do."""
