"""Fields of other servers and of OpenAI that this one does not honour, with the values at which they have no effect."""

from server.api.schema.base import NoEffect

NOT_HONOURED: NoEffect = {
    "prompt_cache_retention": (None, "in_memory", "in-memory", "24h"),
    "service_tier": (None, "auto", "default"),
}
NOT_HONOURED_BEYOND_OPENAI: NoEffect = {
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "cache_salt": (None,),
    "detokenize": (None, True),
    "early_stopping": (None, False),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "include_stop_str_in_output": (None, False),
    "kv_transfer_params": (None, {}),
    "length_penalty": (None, 1),
    "logits_processors": (None, []),
    "priority": (None, 0),
    "prompt_logprobs": (None,),
    "return_token_ids": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
    "vllm_xargs": (None, {}),
}
"""Fields of vLLM's requests, which clients made for it send at their defaults."""
NOT_HONOURED_IN_CHAT: NoEffect = {
    **NOT_HONOURED,
    **NOT_HONOURED_BEYOND_OPENAI,
    "add_special_tokens": (None, False),
    "audio": (None,),
    "chat_template": (None,),
    "documents": (None, []),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "include_reasoning": (None, True),
    "mm_processor_kwargs": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prompt_cache_options": (None,),
    "web_search_options": (None,),
}
NOT_HONOURED_IN_COMPLETIONS: NoEffect = {
    **NOT_HONOURED,
    **NOT_HONOURED_BEYOND_OPENAI,
    "add_special_tokens": (None, True),
}
NOT_HONOURED_IN_TOKENIZATION: NoEffect = {
    "chat_template": (None,),
    "return_token_strs": (None, False),
}
INSTEAD = {
    **dict.fromkeys(
        ("guided_choice", "guided_grammar", "guided_json", "guided_regex"), "Its newer name is structured_outputs."
    ),
    "best_of": "All choices that are generated are returned; ask for them with n.",
    "functions": "Send them as tools.",
    "function_call": "Send it as tool_choice.",
}
NOT_HONOURED_IN_MESSAGES: NoEffect = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "images": (None, []),
    "reasoning_details": (None, []),
    "refusal": (None, ""),
    "thinking_blocks": (None, []),
}
