"""Chat templates of reasoning models, written here in the form of Qwen3's, SmolLM3's and R1's, and shorter."""

TOOLS_OF_HERMES = (
    "{{- '# Tools\n<tools>' }}{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}"
    '{{- \'\n</tools>\n<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>\n\' }}'
)
CALLS_OF_HERMES = (
    "{%- for call in m.tool_calls or [] %}{{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}"
    "{%- endfor %}"
)
QWEN3 = (
    "{%- if tools %}" + TOOLS_OF_HERMES + "{%- endif %}"
    "{%- set ns = namespace(last_query=0) %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- set ns.last_query = loop.index0 %}{%- endif %}"
    "{%- endfor %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last_query and m.reasoning_content %}"
    "{{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{%- endif %}"
    "{{- m.content }}" + CALLS_OF_HERMES + "{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}{{- '<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
SMOLLM3 = (
    "{%- set ns = namespace(thinks=enable_thinking is not defined or enable_thinking) %}"
    "{%- if messages[0].role == 'system' %}"
    "{%- if '/no_think' in messages[0].content %}{%- set ns.thinks = false %}{%- endif %}"
    "{%- if '/think' in messages[0].content %}{%- set ns.thinks = true %}{%- endif %}"
    "{%- endif %}"
    "{{- '<|im_start|>system\nReasoning Mode: ' + ('/think' if ns.thinks else '/no_think') + '\n' }}"
    "{%- if xml_tools or python_tools or tools %}" + TOOLS_OF_HERMES + "{%- endif %}"
    "{{- '<|im_end|>\n' }}"
    "{%- for m in messages if m.role != 'system' %}"
    "{{- '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}"
    "{%- if m.role == 'assistant' and not ns.thinks %}{{- '<think>\n\n</think>\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if not ns.thinks %}{{- '<think>\n\n</think>\n' }}{%- endif %}"
    "{%- endif %}"
)
R1 = (
    "{{- bos_token }}"
    "{%- for m in messages %}"
    "{%- if m.role == 'system' %}{{- m.content }}"
    "{%- elif m.role == 'user' %}{{- '<|User|>' + m.content }}"
    "{%- else %}{{- '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{%- endif %}"
)
