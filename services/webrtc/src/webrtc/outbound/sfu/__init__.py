"""The SFU inside the service: forwards what participants publish, encoded as it came, to everybody else in the room.

Importing this package is cheap; aiortc (0.2 s, 60 MB) comes with the first call. From the outside in:
``backend`` (the port), ``thread`` (a loop of its own), ``rooms`` and ``participant`` (who gets what), ``publication``
and ``subscription`` (a PeerConnection each), ``fanout`` and ``frames`` (the media itself), ``inside`` (what is not
aiortc's public interface).
"""
