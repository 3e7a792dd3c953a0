"""Domain events over Kafka: published through a bounded buffer, consumed so that a dead or frozen broker stops nothing.

Delivery is at least once and in order per subject; an event keeps its id over all repetitions, by which consumers drop
doubles. The only place that knows aiokafka.
"""

from .consumer import ConsumerStats, EventConsumer, Handler
from .domain_event import DomainEvent, UnreadableEvent
from .kafka import classify, is_outage
from .publisher import DEAD_TOPIC, TOPIC, EventPublisher, PublisherStats

__all__ = [
    "DEAD_TOPIC",
    "TOPIC",
    "ConsumerStats",
    "DomainEvent",
    "EventConsumer",
    "EventPublisher",
    "Handler",
    "PublisherStats",
    "UnreadableEvent",
    "classify",
    "is_outage",
]
