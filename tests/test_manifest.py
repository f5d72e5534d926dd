"""The fine print: what the protocol demands of a multiplexer, or was seen to break a real peer, and the test of each.

A requirement without a test fails here, and so does a test that is named and does not exist.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent

REQUIREMENTS: dict[str, list[str]] = {
    "Towards the host a message has at most host_message_mb; a longer answer becomes an error with server and size": [
        "test_core.py::test_an_answer_that_hosts_do_not_take_becomes_an_error_that_names_server_and_size",
    ],
    "From a server a line has at most max_message_mb": [
        "test_wire.py::test_a_line_is_too_long_exactly_above_the_limit",
        "test_wire.py::test_an_endless_line_is_not_kept_but_its_edges_are",
        "test_core.py::test_an_over_long_answer_ends_its_call_with_the_reason",
    ],
    "Invalid UTF-8 is replaced, with a log line": ["test_wire.py::test_invalid_utf8_is_replaced_with_a_note"],
    "A lone surrogate escape is mended and the line read once more": [
        "test_wire.py::test_a_lone_surrogate_escape_is_mended_and_a_pair_is_not",
    ],
    "Deep nesting is a bad line like any other": ["test_wire.py::test_deep_nesting_is_a_bad_line"],
    "Edited params are rebuilt, so that a repeated key cannot smuggle a second name past the filters": [
        "test_wire.py::test_a_repeated_key_counts_once",
        "test_core.py::test_a_second_name_does_not_get_past_the_filters",
    ],
    "Params and results are byte for byte": [
        "test_wire.py::test_payloads_come_through_byte_for_byte",
        "test_core.py::test_params_and_results_pass_byte_for_byte",
    ],
    "Unknown top-level fields are not sent on": ["test_core.py::test_unknown_top_level_fields_are_not_passed_on"],
    "The host's id goes back as it came; 0 and strings are ids": [
        "test_core.py::test_the_hosts_id_comes_back_as_it_was"
    ],
    'A server\'s 7.0 and "7" mean 7': [
        "test_wire.py::test_our_id_is_recognized_in_each_spelling",
        "test_core.py::test_a_servers_spelling_of_our_id_does_not_matter",
    ],
    "An error with a null id is nobody's answer": [
        "test_core.py::test_an_answer_to_nothing_twice_or_with_a_null_id_is_dropped",
    ],
    "-32700 to the host carries no id": [
        "test_wire.py::test_an_error_without_id_has_no_id_member",
        "test_core.py::test_a_bad_line_of_the_host_is_answered_and_costs_only_itself",
    ],
    "An array is a batch under 2025-03-26 and a bad line elsewhere": [
        "test_core.py::test_a_batch_is_unpacked_where_its_revision_was_negotiated",
        "test_core.py::test_a_batch_is_a_bad_line_in_every_other_revision",
    ],
    "Notifications are never answered": ["test_core.py::test_notifications_are_never_answered"],
    "Empty results are exactly {}": [
        "test_core.py::test_a_ping_is_answered_even_before_initialize",
        "test_core.py::test_the_log_level_is_told_to_every_server_with_logging_also_to_later_ones",
    ],
    "Waiting calls go out when what a server asks after initialized is answered, or after 100 ms of quiet": [
        "test_core.py::test_lists_and_calls_wait_for_what_a_server_asks_after_initialized",
        "test_core.py::test_a_server_that_asks_nothing_is_used_after_a_tenth_of_a_second",
        "test_core.py::test_a_host_that_never_answers_what_a_server_asks_first_does_not_keep_its_tools_away_for_ever",
    ],
    "A question during our list or completion is answered at once from what we have, else with an error": [
        "test_core.py::test_a_servers_question_while_it_is_being_listed_is_answered_from_what_we_have",
        "test_core.py::test_while_a_completion_is_open_the_table_answers_for_roots",
    ],
    "Before initialize a request other than ping is refused in words that say how to begin": [
        "test_core.py::test_nothing_is_served_before_initialize",
    ],
    "An unknown version in initialize gets 2025-11-25": [
        "test_eras.py::test_an_unknown_revision_is_answered_with_the_latest_legacy_one",
    ],
    "Resource updates go only to those who subscribed, also of sub-resources": [
        "test_core.py::test_updates_reach_the_host_only_from_servers_that_it_subscribed_at",
    ],
    "Progress rises within one token": ["test_core.py::test_progress_that_does_not_rise_is_dropped"],
    "Progress for nothing that is open is dropped": [
        "test_core.py::test_progress_for_nothing_that_is_open_is_dropped",
        "test_core.py::test_progress_after_the_answer_or_without_a_token_or_for_another_server_is_dropped",
    ],
    "A task's progress token lives until its terminal status": [
        "test_core.py::test_a_tasks_progress_goes_on_after_the_call_is_answered_until_the_task_ends",
        "test_core.py::test_a_task_that_is_seen_to_end_ends_its_progress",
    ],
    "A server's tasks/* go to the host by task id, and only for its own tasks": [
        "test_core.py::test_a_server_follows_the_task_that_the_host_made_for_it_and_no_other",
    ],
    "tasks, extensions and experimental are united": [
        "test_eras.py::test_the_host_is_told_the_same_whoever_is_up_and_what_only_servers_can_make_true_is_united",
    ],
    "Unknown notifications pass, unknown requests get -32601": [
        "test_core.py::test_other_notifications_pass_to_the_host_as_they_are",
        "test_core.py::test_a_servers_unknown_request_is_refused",
    ],
    "Only an absent or null cursor ends a list; so do a repeated one and 1,000 pages": [
        "test_eras.py::test_only_an_absent_or_null_cursor_ends_a_list",
        "test_eras.py::test_a_cursor_that_does_not_advance_ends_a_list",
        "test_eras.py::test_a_list_has_at_most_a_thousand_pages",
        "test_core.py::test_a_cursor_that_does_not_advance_ends_the_list",
    ],
    "A cursor from the host gets -32602": ["test_core.py::test_a_cursor_that_we_never_gave_is_refused"],
    "An entry that strict hosts refuse is made valid or left out, with a log line": [
        "test_catalogue.py::test_an_entry_is_made_valid_where_it_can_be",
        "test_catalogue.py::test_an_entry_that_cannot_be_made_valid_is_left_out_with_its_reason",
        "test_catalogue.py::test_any_entry_is_valid_for_a_strict_host_or_left_out",
        "test_core.py::test_one_bad_entry_costs_only_itself",
    ],
    "An output schema that is no object, and its results, are wrapped": [
        "test_catalogue.py::test_an_output_schema_that_is_no_object_is_wrapped_with_its_results",
        "test_core.py::test_structured_results_of_a_wrapped_tool_are_wrapped",
    ],
    "Every answer to a question, an error too, comes back to the server": [
        "test_core.py::test_a_question_goes_to_the_host_and_its_answer_or_error_comes_back",
    ],
    "A mode that was never declared is -32602; no elicitation at all is a decline; nothing is ever accepted": [
        "test_bridge.py::test_a_question_is_forwarded_answered_or_refused",
    ],
    "An elicitation says which server asks, and is else as it was": [
        "test_bridge.py::test_only_the_message_of_an_elicitation_is_changed",
    ],
    "Sampling goes to the host where it declared what is needed, else to the model, else it is refused in words": [
        "test_eras.py::test_what_a_server_is_told_of_sampling_is_what_it_then_gets",
        "test_bridge.py::test_a_servers_policy_the_host_and_the_model_decide_who_is_asked",
        "test_bridge.py::test_a_refusal_of_sampling_says_what_is_missing",
    ],
    "The model's answer or error comes back to the server that asked, under its own id": [
        "test_core.py::test_the_models_answer_or_error_goes_to_the_server_that_asked",
        "test_core.py::test_the_models_answer_comes_under_the_servers_own_id",
        "test_core.py::test_questions_of_many_servers_to_the_model_with_one_id_are_kept_apart",
    ],
    "The model's limits are each server's own; a refusal says which it is and when it is free again": [
        "test_core.py::test_a_server_that_asks_the_model_too_often_in_a_minute_is_refused_and_told_for_how_long",
        "test_core.py::test_a_server_has_so_many_questions_open_at_the_model_and_others_have_their_own",
    ],
    "When the host cancels a call, what its server asked for it is withdrawn and ends; nothing else is": [
        "test_core.py::test_when_the_host_cancels_a_call_what_its_server_asks_for_it_is_withdrawn_and_ends_with_an_error",
        "test_core.py::test_a_question_that_another_call_may_have_asked_is_not_withdrawn_until_that_is_cancelled_too",
        "test_core.py::test_a_question_outside_any_call_outlives_calls_that_are_cancelled",
    ],
    "Every request ends exactly once, whatever happens": [
        "test_properties.py::Questions",
        "test_properties.py::Traffic",
    ],
    "Names fit every host: alphabet, length, no two alike, the same in every run": [
        "test_catalogue.py::test_names_are_always_distinct_valid_short_and_the_same_from_run_to_run",
    ],
    "A server is told no capability that the host did not declare": [
        "test_eras.py::test_a_server_is_told_what_the_host_can_and_its_table_allows",
    ],
}


def names_in(file: str) -> set[str]:
    tree = ast.parse((HERE / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_every_requirement_has_a_test_that_exists(requirement: str):
    assert REQUIREMENTS[requirement]
    for named in REQUIREMENTS[requirement]:
        file, name = named.split("::")
        assert name in names_in(file), named


def test_no_test_has_the_name_of_another_in_its_file():
    """The second would hide the first."""
    for path in HERE.rglob("test_*.py"):
        names = re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
        assert len(names) == len(set(names)), path
