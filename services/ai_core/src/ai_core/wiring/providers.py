"""Row A2: the providers of language models."""

from ai_core.degradation import PROVIDERS, classify
from ai_core.outbound.openai import MAX_CONNECTIONS, OpenAIProvider
from ai_core.settings import Settings
from ai_core.usecases.chat import Provider
from resilience import RowPolicy
from service_kit.runtime import ServiceRuntime


class ProvidersPart:
    """The chain. Make it on the loop that will serve."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        limit = settings.ai_provider_timeout or PROVIDERS.call_timeout
        key = settings.openai_api_key.get_secret_value()
        provider = OpenAIProvider(settings.openai_base_url, key, limit, runtime.clock.time)
        self.policy: RowPolicy = runtime.policy(
            PROVIDERS, classify=classify, probe=provider.ping, bulkhead_limit=MAX_CONNECTIONS, timeout=limit
        )
        self.provider = Provider(provider, self.policy, runtime.clock)
        runtime.on_close(provider.close, "providers")
