"""OpenAI's fields that this server does not honour, with the values at which they have no effect."""

from server.api.schema.base import NoEffect

NOT_HONOURED: NoEffect = {
    "service_tier": (None, "auto", "default"),
}
NOT_HONOURED_IN_CHAT: NoEffect = {
    **NOT_HONOURED,
    "moderation": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None,),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
NOT_HONOURED_IN_COMPLETIONS: NoEffect = {
    **NOT_HONOURED,
    "best_of": (None, 1),
    "suffix": (None, ""),
}
INSTEAD_IN_COMPLETIONS = {
    "best_of": "All choices that are generated are returned; ask for them with n.",
    "suffix": "This server does not insert text; it only continues a prompt.",
}
NOT_HONOURED_IN_MESSAGES: NoEffect = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "name": (None,),
    "refusal": (None,),
}
