"""Participants' SDP, checked before any of it is applied.

Every browser has VP8 and Opus (RFC 7742 section 5, RFC 7874 section 3), so only these are negotiated: whatever is
published, everybody can take. Participants' own ICE candidates are left out: the SFU has an address that they reach,
and learns theirs from their checks (RFC 8445 section 7.3.1.3), so it neither resolves their mDNS names nor sends
anything to an address that did not ask for it.
"""

from aiortc.sdp import MediaDescription, SessionDescription

MAX_MLINES = 8  # in a publisher's offer: two cameras, two microphones, and as many given up ones
CODECS: dict[str, str] = {"audio": "opus", "video": "vp8"}
CANDIDATE_LINES = ("a=candidate:", "a=end-of-candidates")


class BadDescription(Exception):
    """An SDP that cannot be used; the text says why."""


def without_candidates(sdp: str) -> str:
    """The description without its candidates (see the module)."""
    return "".join(line for line in sdp.splitlines(keepends=True) if not line.startswith(CANDIDATE_LINES))


def parse(sdp: str, kind: str) -> list[MediaDescription]:
    """The m-lines of a description, checked before any of it is applied. Raises BadDescription."""
    try:
        media = SessionDescription.parse(sdp).media
    except Exception as error:  # aiortc's parser raises whatever comes up
        raise BadDescription(f"{kind} is not SDP as WebRTC uses it") from error
    if not media:
        raise BadDescription(f"{kind} has no media")
    if kind == "offer" and len(media) > MAX_MLINES:
        raise BadDescription(f"more than {MAX_MLINES} m-lines")
    if len({one.rtp.muxId for one in media}) < len(media):
        raise BadDescription("m-lines need a mid each")
    for one in media:
        _check(one)
    return media


def _check(media: MediaDescription) -> None:
    if media.kind not in CODECS:
        raise BadDescription("only audio and video are forwarded")
    if media.ice is None or not media.ice.usernameFragment or not media.ice.password:
        raise BadDescription("no ICE credentials")
    if media.dtls is None or not media.dtls.fingerprints:
        raise BadDescription("no DTLS fingerprint or setup")
    if not any(codec.name.lower() == CODECS[media.kind] for codec in media.rtp.codecs):
        raise BadDescription(f"{media.kind} without {CODECS[media.kind]}")
