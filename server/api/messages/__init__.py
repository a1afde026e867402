"""Anthropic's interface, `/v1/messages`: its body stands for a chat, and the chat's answer takes its form."""
