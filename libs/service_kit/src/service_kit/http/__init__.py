"""The HTTP side of a service."""

from .answers import json_response, served_json, stamp
from .app import create_app
from .edge import Edge
from .problems import PROBLEM_JSON, problem_responses, respond

__all__ = [
    "PROBLEM_JSON",
    "Edge",
    "create_app",
    "json_response",
    "problem_responses",
    "respond",
    "served_json",
    "stamp",
]
