"""What `count_costs.py` counts and tests/test_costs.py checks: operations, launches, allocations and instructions of the codec."""
