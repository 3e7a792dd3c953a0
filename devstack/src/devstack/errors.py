"""What can go wrong, with texts for the user.

DevstackError
├── AccountError         root, but no unprivileged user to run PostgreSQL as
├── AlreadyRunningError  another supervisor holds the state directory
├── ChaosError           a fault that cannot be injected, a component that does not exist
├── ComponentError       a component could not be prepared or started
├── NoStackError         there is no running supervisor to talk to
├── NotReadyError        something did not come up in time
├── PortBusyError        a port that the stack needs is taken
└── ProxyError           the fault proxy cannot be reached, or refuses
"""


class DevstackError(Exception):
    """Base of the expected errors: one line for the user, exit status 1, no stack trace."""


class AccountError(DevstackError):
    """Root, but no unprivileged user to run PostgreSQL as."""


class AlreadyRunningError(DevstackError):
    """Another supervisor holds the state directory."""


class ChaosError(DevstackError):
    """A fault that cannot be injected, or a component that does not exist."""


class ComponentError(DevstackError):
    """A component could not be prepared or started."""


class NoStackError(DevstackError):
    """There is no running supervisor to talk to; the text says what to do."""


class NotReadyError(DevstackError):
    """Something did not come up in time; the text names it, says why as far as known, and quotes its log."""


class PortBusyError(DevstackError):
    """A port that the stack needs is taken; the text names it and its holder."""


class ProxyError(DevstackError):
    """The fault proxy cannot be reached, or refuses."""
