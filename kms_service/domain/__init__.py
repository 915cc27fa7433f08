"""The domain: names, states, leases, decisions, errors and ports. Pure: no I/O, no clock."""
