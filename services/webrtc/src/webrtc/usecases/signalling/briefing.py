"""What a participant is told about itself and its surroundings: at joining, and whenever that changes."""

from resilience import Clock
from webrtc.model import IceGrant
from webrtc.ports import Cluster, Degradations, IceSource, TokenSigner
from webrtc.usecases.signalling import messages
from webrtc.usecases.signalling.participant import Participant

ICE_FRESH = 0.8
"""Share of their lifetime after which credentials are replaced."""


class Briefing:
    """``heartbeat``: seconds between two pings, as clients are told."""

    def __init__(
        self,
        cluster: Cluster,
        tokens: TokenSigner,
        ice: IceSource,
        degraded: Degradations,
        clock: Clock,
        heartbeat: float,
    ) -> None:
        self._cluster = cluster
        self._tokens = tokens
        self._ice = ice
        self._degraded = degraded
        self._clock = clock
        self._heartbeat = heartbeat

    def welcome(self, participant: Participant, *, resumed: bool) -> None:
        """Everything that there is to know."""
        state, member = participant.room, participant.member
        grant = self._granted(participant)
        participant.tell(
            messages.server(
                "welcome",
                participant=member.id,
                resume=self._tokens.resume_secret(state.id, member.user_id, member.id),
                resumed=resumed,
                room={"id": state.id, "name": state.room.name, "max_participants": state.room.max_participants},
                call_id=state.call.id if state.call else None,
                participants=[messages.participant(one) for one in state.members()],
                media={"mode": state.mode},
                ice_servers=messages.ice_servers(grant.servers),
                ice_expires_in=grant.expires_in,
                heartbeat=self._heartbeat,
                degraded=self._degraded(),
                single_instance=self._cluster.alone,
            )
        )

    def ice(self, participant: Participant, *, restart: bool = False) -> None:
        """Fresh servers; ``restart``: ICE should be restarted, by the owner first."""
        grant = self._granted(participant)
        participant.tell(
            messages.server(
                "ice",
                ice_servers=messages.ice_servers(grant.servers),
                expires_in=grant.expires_in,
                stun_only=grant.stun_only,
                restart=restart,
                owner=min(member.id for member in participant.room.members()),
            )
        )

    def _granted(self, participant: Participant) -> IceGrant:
        grant = self._ice.grant(participant.member.user_id)
        fresh = grant.expires_in * ICE_FRESH
        participant.ice_at = self._clock.monotonic() + fresh if fresh > 0 else None
        return grant

    @property
    def stun_only(self) -> bool:
        """Whether no relay is to be had now (row W2, or none configured)."""
        grant = self._ice.grant("")
        return grant.stun_only or not any(url.startswith("turn") for one in grant.servers for url in one.urls)

    def degraded(self) -> bytes:
        """The rows that are served by a fallback now."""
        return messages.server("degraded", rows=self._degraded(), single_instance=self._cluster.alone)
