"""What this very process may use at most, from here on. Standard library alone: it comes before what is not trusted."""

import resource


def limit_process(kind: int, most: int) -> None:
    """Set a limit of `resource`, e.g. RLIMIT_AS, or the lower one that whoever started this has set for good."""
    _soft, hard = resource.getrlimit(kind)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (bound, bound))
