"""What a user does, once through everything; each step must succeed and be served by the real thing."""

from __future__ import annotations

from typing import Any

from tests.harness.client import Account
from tests.harness.platform import Answer, Platform


def fine(answer: Answer, status: int = 200) -> Any:
    """The body of a healthy answer."""
    assert answer.status == status, answer
    assert "x-degraded-mode" not in answer.headers, answer
    return answer.body


async def journey(platform: Platform, at: str = "dashboard") -> Account:
    """Registers, logs in, changes the profile, opens a room, gets a token for it, makes an agent and talks to it."""
    account = await platform.register(at)
    assert fine(await platform.call("GET", "/api/v1/auth/me", account, at=at))["email"] == account.email
    assert fine(await platform.rename(account, "Ada", at))["display_name"] == "Ada"
    assert fine(await platform.profile(account, at))["display_name"] == "Ada"

    room = fine(await platform.call("POST", "/api/v1/rooms", account, at=at, json={"name": "Standup"}), 201)
    path = f"/api/v1/rooms/{room['id']}"
    assert fine(await platform.call("GET", path, account, at=at))["name"] == "Standup"
    ticket = fine(await platform.call("POST", f"{path}/token", account, at=at))
    assert ticket["token"]
    assert ticket["ws_url"].startswith("ws")
    assert ticket["ice_servers"][0]["urls"]
    listed = fine(await platform.call("GET", "/api/v1/rooms", account, at=at))
    assert [one["id"] for one in listed["items"]] == [room["id"]]

    new = {"name": "Helper", "system_prompt": "Be brief."}
    agent = fine(await platform.call("POST", "/api/v1/agents", account, at=at, json=new), 201)
    said = {"message": "Hello"}
    reply = fine(await platform.call("POST", f"/api/v1/agents/{agent['id']}/chat", account, at=at, json=said))
    assert reply["simulated"] is True
    assert "simulated" in reply["reply"].lower()
    return account
