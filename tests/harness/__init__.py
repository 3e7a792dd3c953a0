"""What the tests of the whole platform share: load from another process, its history, and the checker."""
