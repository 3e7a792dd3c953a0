"""What `up` prints and `up --detach` looks for."""

READY_LIMIT = 60.0  # s until every component should accept work
READY_MARK = "Ready after"
FAILED_MARK = "Not everything is up"
