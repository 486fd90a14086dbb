"""The two tables of docs/protocol.md: what follows when something happens to a generation.

Only the tables, without time, descriptors or reasons. What is not listed changes nothing. The words
of actions are methods of `heirloom_native.Old` and `heirloom_native.New`.
"""

NEW = {
    "greeting": {
        "begin": ("owning", ["own"]),
        "receive": ("receiving", ["read"]),
        "abort": ("dismissed", ["give_up"]),
        "supervisor_gone": ("dismissed", ["give_up"]),
    },
    "receiving": {
        "verified": ("verified", ["tell_ready"]),
        "unusable": ("dismissed", ["tell_reject", "give_up"]),
        "abort": ("dismissed", ["give_up"]),
        "supervisor_gone": ("dismissed", ["give_up"]),
    },
    "verified": {
        "commit": ("committing", ["say_committed"]),
        "commit_alone": ("owning", ["own", "tell_committed"]),
        "abort": ("dismissed", ["give_up"]),
        "supervisor_gone": ("dismissed", ["give_up"]),
    },
    "committing": {
        "queued": ("owning", ["own", "tell_committed"]),
        "refused": ("refused", ["doubt"]),
        "commit_alone": ("owning", ["own", "tell_committed"]),
    },
    "refused": {
        "commit_alone": ("owning", ["own", "tell_committed"]),
        "abort": ("dismissed", ["give_up"]),
        "supervisor_gone": ("dismissed", ["give_up"]),
        "deadline": ("dismissed", ["give_up"]),
    },
    "owning": {},
    "dismissed": {},
}

RESOLVE = ("resolving", ["resolve"])
COPYING = {
    "send": ("copying", ["refuse"]),
    "converged": ("converged", ["tell_converged"]),
    "broken": ("serving", ["end_copy", "tell_failed"]),
    "peer_gone": ("serving", ["end_copy", "tell_failed"]),
    "abort": ("serving", ["end_copy"]),
    "supervisor_gone": ("serving", ["end_copy"]),
    "retire": ("serving", ["end_copy", "tell_failed", "drain"]),
}

OLD = {
    "serving": {
        "send": ("copying", ["copy"]),
        "retire": ("serving", ["drain"]),
    },
    "copying": COPYING,
    "converged": COPYING
    | {
        "send": ("converged", ["refuse"]),
        "converged": ("converged", []),
        "freeze": ("freezing", ["freeze"]),
    },
    "freezing": {
        "send": ("freezing", ["refuse"]),
        "complete": ("frozen", ["tell_frozen"]),
        "complete_rehearsal": ("rehearsed", ["thaw", "tell_frozen", "end_copy"]),
        "broken": RESOLVE,
        "abort": RESOLVE,
        "deadline": RESOLVE,
        "peer_gone": RESOLVE,
        "retire": RESOLVE,
        "supervisor_gone": RESOLVE,
    },
    "frozen": {
        "send": ("frozen", ["refuse"]),
        "committed": ("yielded", ["end_copy", "give_way", "tell_yielded"]),
        "broken": RESOLVE,
        "abort": RESOLVE,
        "deadline": RESOLVE,
        "peer_gone": RESOLVE,
        "retire": RESOLVE,
        "supervisor_gone": RESOLVE,
    },
    "rehearsed": {
        "send": ("copying", ["copy"]),
        "retire": ("serving", ["drain"]),
        "abort": ("serving", []),
        "peer_gone": ("serving", []),
        "broken": ("serving", []),
        "supervisor_gone": ("serving", []),
    },
    "resolving": {
        "send": ("resolving", ["refuse"]),
        "ours": ("serving", ["tell_thawed", "thaw", "end_copy"]),
        "theirs": ("yielded", ["end_copy", "give_way", "tell_yielded"]),
    },
    "yielded": {
        "send": ("yielded", ["refuse"]),
        "retire": ("yielded", ["drain"]),
        "supervisor_gone": ("yielded", ["drain"]),
    },
}
