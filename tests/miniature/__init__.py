"""A package, so that its conftest.py and test_run.py are not taken for those beside it."""
