"""Several instances share rooms: each is the truth about its own participants; Redis a projection, with leases.

``merge`` is the rule by which two views of a room become one, ``view`` a room as the others have it, ``outbox`` what
has to be told, ``peers`` the other instances; ``shared`` puts them together on a ``store``. ``alone`` is the cluster of
one.
"""
