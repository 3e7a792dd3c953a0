"""The guided tour: each row of the matrix is broken under load, and what callers saw is held against the promise."""
