"""What users of the official SDK see of one server, they see of replicas: the same tests, against a cluster."""

import pytest

from tests.api.test_openai_client import *  # noqa: F403
from tests.api.test_streaming import (
    test_options_of_a_stream_need_one,
    test_padded_events_do_not_tell_the_lengths_of_tokens,
    test_the_sdk_reads_both,
    test_usage_so_far_is_in_each_chunk,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

__all__ = [
    "test_options_of_a_stream_need_one",
    "test_padded_events_do_not_tell_the_lengths_of_tokens",
    "test_the_sdk_reads_both",
    "test_usage_so_far_is_in_each_chunk",
]
