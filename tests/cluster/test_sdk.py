"""What users of the official SDK see of one server, they see of replicas: the same tests, against a cluster."""

import pytest

from tests.api.test_openai_client import (
    test_a_conversation_goes_on_with_the_sdks_own_message,
    test_answer_has_openais_fields_and_this_servers_metrics,
    test_choices_differ_and_the_first_is_the_single_one,
    test_speculation_never_changes_the_text,
    test_stop_string_ends_text_and_counts,
    test_stream_and_whole_answer_have_the_same_text,
    test_text_completions_take_text_and_ids,
    test_usage_comes_on_a_last_chunk_of_its_own,
)
from tests.api.test_streaming import (
    test_options_of_a_stream_need_one,
    test_padded_events_do_not_tell_the_lengths_of_tokens,
    test_the_sdk_reads_both,
    test_usage_so_far_is_in_each_chunk,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

__all__ = [
    "test_a_conversation_goes_on_with_the_sdks_own_message",
    "test_answer_has_openais_fields_and_this_servers_metrics",
    "test_choices_differ_and_the_first_is_the_single_one",
    "test_options_of_a_stream_need_one",
    "test_padded_events_do_not_tell_the_lengths_of_tokens",
    "test_speculation_never_changes_the_text",
    "test_stop_string_ends_text_and_counts",
    "test_stream_and_whole_answer_have_the_same_text",
    "test_text_completions_take_text_and_ids",
    "test_the_sdk_reads_both",
    "test_usage_comes_on_a_last_chunk_of_its_own",
    "test_usage_so_far_is_in_each_chunk",
]
