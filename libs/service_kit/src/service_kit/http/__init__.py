"""The HTTP side of a service."""

from .answers import json_response, served_json, stamp
from .app import create_app
from .edge import Edge, Shape
from .event_stream import EventStream, event, late_degradations
from .problems import PROBLEM_JSON, problem_responses, respond
from .queued import queued_answer

__all__ = [
    "PROBLEM_JSON",
    "Edge",
    "EventStream",
    "Shape",
    "create_app",
    "event",
    "json_response",
    "late_degradations",
    "problem_responses",
    "queued_answer",
    "respond",
    "served_json",
    "stamp",
]
