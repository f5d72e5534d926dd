"""The fine print: what the protocol demands of a multiplexer, or was seen to break a real peer, and the test of each.

A requirement without a test fails here, and so does a test that is named and does not exist.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent

REQUIREMENTS: dict[str, list[str]] = {
    "Towards the host a message has at most host_message_mb; a longer answer becomes an error with server and size": [
        "test_core.py::test_an_answer_that_hosts_do_not_take_becomes_an_error_that_names_server_and_size",
        "test_modern.py::test_questions_that_are_more_together_than_hosts_take_are_refused_and_the_others_asked",
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
    # ── finding a server's era ──
    "A server that does not answer server/discover in 10 s is asked to initialize on the same pipe, and that decides": [
        "test_modern.py::test_silence_is_no_answer_and_initialize_follows",
        "test_modern.py::test_a_slow_modern_server_is_found_by_its_refusal_of_initialize",
    ],
    "Any other answer to server/discover, whatever its code, means a legacy server; so does one without our versions": [
        "test_modern.py::test_a_server_that_names_no_modern_version_is_a_legacy_one",
        "test_modern.py::test_a_legacy_server_is_found_by_a_modern_host_on_the_same_pipe",
    ],
    "A server that exits at server/discover gets a fresh process and is asked to initialize": [
        "test_modern.py::test_a_server_that_dies_of_the_question_is_started_afresh_as_a_legacy_one",
        "test_modern.py::test_a_server_that_cannot_even_be_started_any_more_is_not_taken_for_one_that_died_of_the_question",
    ],
    "A refusal of initialize is followed by server/discover on the same pipe, then both in a fresh process": [
        "test_modern.py::test_a_modern_server_is_found_by_a_legacy_host_on_the_same_pipe",
        "test_modern.py::test_a_server_that_its_first_request_has_locked_is_asked_in_a_fresh_process",
        "test_modern.py::test_what_a_server_asked_before_its_fresh_process_is_not_answered_to_that",
    ],
    "Each host's own era is tried first, what worked is remembered, and asked for again where it fails": [
        "test_modern.py::test_each_hosts_era_is_tried_first",
        "test_modern.py::test_what_was_found_is_remembered_until_it_fails",
        "test_modern.py::test_a_table_can_say_the_era",
    ],
    "A legacy server is asked in the host's own revision, for a modern host in the latest legacy one": [
        "test_core.py::test_a_server_is_greeted_in_the_hosts_name_revision_and_capabilities",
        "test_modern.py::test_a_legacy_server_never_sees_an_envelope",
    ],
    "A call that waits for its server to start can already carry what that asks first": [
        "test_modern.py::test_a_call_that_waits_for_its_server_can_carry_what_that_asks_first",
    ],
    # ── what crosses the eras ──
    "The era goes with each request: an envelope is modern, initialize is legacy whatever it carries": [
        "test_modern.py::test_a_host_that_has_looked_may_still_initialize_and_use_both_eras",
        "test_core.py::test_a_probe_for_the_modern_era_is_answered_at_once_and_initialize_still_works",
    ],
    "ping, logging/setLevel, resources/subscribe and unsubscribe are not found in the modern era": [
        "test_modern.py::test_what_the_modern_era_has_no_more_is_not_found",
    ],
    "The envelope, inputResponses and requestState never reach a legacy server; all else does": [
        "test_modern.py::test_a_legacy_server_never_sees_an_envelope",
        "test_modern.py::test_a_modern_host_lists_and_calls_servers_of_both_eras",
    ],
    "A missing clientInfo becomes mcpmux's": [
        "test_modern.py::test_a_host_that_does_not_say_who_it_is_is_called_by_our_name",
    ],
    "An embedded request loses progressToken, related-task and task, and keeps the rest of its _meta": [
        "test_modern.py::test_what_a_question_says_of_its_own_connection_does_not_reach_a_modern_host",
    ],
    "elicitationId is minted for a legacy host and removed for a modern one, which hears of no completed elicitation": [
        "test_modern.py::test_a_page_has_an_elicitation_id_for_a_legacy_host_and_none_for_a_modern_one",
        "test_modern.py::test_pages_to_be_visited_become_questions_and_the_retry_a_new_call",
    ],
    "-32042 becomes questions for a modern host that can open pages; the retry waits for the visit, then calls anew": [
        "test_modern.py::test_pages_to_be_visited_become_questions_and_the_retry_a_new_call",
        "test_modern.py::test_the_new_call_is_made_after_60_s_without_word_and_not_at_all_after_a_no",
        "test_modern.py::test_pages_that_are_required_while_the_call_is_parked_are_asked_for_on_the_retry",
    ],
    "-32042 becomes -32021 where this request did not declare elicitation.url": [
        "test_modern.py::test_a_host_that_cannot_open_pages_is_told_what_is_missing",
        "test_modern.py::test_pages_that_are_none_or_that_the_table_forbids_are_no_missing_capability",
    ],
    "To a legacy host -32042 passes, with the server's name": [
        "test_modern.py::test_a_legacy_host_hears_of_pages_as_they_are_with_the_servers_name",
    ],
    "A modern host hears neither codes of the legacy era nor a server's own from the reserved range": [
        "test_modern.py::test_a_modern_host_hears_no_codes_of_the_legacy_era",
        "test_modern.py::test_our_own_refusals_have_codes_of_the_modern_era_too",
    ],
    "A legacy server is set to a modern call's level before that call; a legacy host's level goes into envelopes": [
        "test_modern.py::test_log_messages_reach_a_modern_host_during_a_call_that_wants_them",
        "test_modern.py::test_a_legacy_hosts_log_level_goes_into_each_envelope",
    ],
    "While a call is parked its progress is dropped; after the retry the retry's token counts": [
        "test_modern.py::test_a_legacy_servers_question_parks_the_call_and_the_retry_stands_for_it",
    ],
    "Legacy tasks are offered and told only from legacy to legacy": [
        "test_modern.py::test_the_tasks_of_2025_11_25_are_told_only_from_legacy_to_legacy",
        "test_eras.py::test_a_server_is_told_of_sampling_by_tasks_only_where_all_its_sampling_is_the_hosts",
    ],
    "A request that declares the tasks extension gets no sampling by our model": [
        "test_modern.py::test_where_a_host_follows_tasks_of_the_modern_era_the_model_answers_nothing",
    ],
    "server/discover lists modern versions only; -32022 lists both eras": [
        "test_modern.py::test_discover_says_who_we_are_and_starts_nothing",
        "test_modern.py::test_an_envelope_that_is_not_whole_is_refused",
    ],
    "Unknown keys of a filter go to modern servers, task ids to their owner": [
        "test_modern.py::test_what_only_extensions_know_of_a_filter_goes_to_modern_servers_and_task_ids_to_their_owner",
    ],
    "A server that ends our subscription is listened to again with backoff, and after a restart": [
        "test_modern.py::test_a_server_that_ends_our_subscription_is_listened_to_again_with_backoff",
    ],
    "A wider subscription is acknowledged before the narrower ends": [
        "test_modern.py::test_a_wider_subscription_at_a_server_is_acknowledged_before_the_narrower_ends",
    ],
    "An output schema that is no object passes to a modern host as it is": [
        "test_modern.py::test_a_tools_own_output_schema_is_shown_to_a_modern_host_and_wrapped_for_a_legacy_one",
    ],
    "Between peers of one era params and results pass byte for byte, but for the envelope": [
        "test_core.py::test_params_and_results_pass_byte_for_byte",
        "test_modern.py::test_between_modern_peers_params_and_results_pass_byte_for_byte",
        "test_modern.py::test_a_modern_hosts_envelope_is_never_invented",
    ],
    # ── the bridge ──
    "An answer that is an error ends a modern server's call: nothing is retried, the other questions are withdrawn": [
        "test_modern.py::test_a_refusal_of_the_host_ends_the_call_and_the_other_questions",
        "test_modern.py::test_a_question_that_cannot_be_answered_here_ends_the_call_before_the_host_is_asked_the_rest",
        "test_modern.py::test_questions_that_nobody_answers_end_their_call_once_even_if_their_time_is_up_together",
    ],
    "A question goes only to a request that declared the capability itself; else it falls back": [
        "test_modern.py::test_a_question_for_a_call_whose_host_cannot_answer_falls_back",
        "test_modern.py::test_a_retry_is_asked_again_only_for_what_it_declares_itself",
        "test_modern.py::test_a_question_that_waited_for_a_call_falls_back_to_the_model_if_that_declares_no_sampling",
        "test_properties.py::Bridge",
    ],
    "A mode that was never declared to the server is -32602; one that only this call lacks is a decline": [
        "test_modern.py::test_a_mode_that_was_never_declared_is_an_error_and_one_that_this_call_lacks_a_no",
    ],
    "A call is parked once at a time; a question with no call for it travels with the next, or ends after 30 s": [
        "test_modern.py::test_a_second_question_while_all_calls_are_parked_travels_in_the_answer_to_the_next_retry",
        "test_modern.py::test_a_question_outside_any_call_waits_for_the_next_one_or_for_30_s",
    ],
    "Questions that come together travel together; what a retry leaves open is asked again": [
        "test_modern.py::test_questions_that_come_together_travel_together_and_missing_answers_are_asked_for_again",
    ],
    "A result that comes while its call is parked is kept for the retry; a question that outlives it waits on": [
        "test_modern.py::test_a_result_that_comes_while_its_call_is_parked_is_kept_for_the_retry",
        "test_modern.py::test_a_question_that_outlives_its_call_waits_for_the_next_one",
    ],
    "A server that dies while its call is parked fails the retry": [
        "test_modern.py::test_a_server_that_dies_while_parked_fails_the_retry",
    ],
    "An answer to a withdrawn question is dropped": [
        "test_modern.py::test_a_question_that_is_withdrawn_leaves_the_call_to_go_on",
    ],
    "Where the host never comes back the question gets an error, its call is cancelled and the state dies": [
        "test_modern.py::test_a_host_that_never_comes_back_ends_the_call_and_the_question",
    ],
    "A cancelled retry cancels the server's call; a cancelled call withdraws what a legacy host was asked for it": [
        "test_modern.py::test_a_cancelled_retry_cancels_the_servers_call",
        "test_modern.py::test_a_host_that_cancels_meanwhile_is_asked_no_more",
        "test_modern.py::test_when_another_call_is_cancelled_the_questions_of_this_one_stay_open",
    ],
    "A state of ours that was used, has expired or never was, and any state for a legacy server, is -32602": [
        "test_modern.py::test_a_request_state_that_nobody_gave_never_goes_to_a_legacy_server",
        "test_modern.py::test_questions_that_come_together_travel_together_and_missing_answers_are_asked_for_again",
        "test_modern.py::test_a_host_that_never_comes_back_ends_the_call_and_the_question",
        "test_properties.py::Bridge",
    ],
    "A state of ours holds for its own method, name and arguments only, compared as values": [
        "test_modern.py::test_a_retry_with_other_arguments_is_refused_and_the_right_one_still_works",
    ],
    "A server's own state passes unread, also one that looks like ours": [
        "test_modern.py::test_between_modern_peers_questions_pass_with_the_servers_name_and_nothing_is_kept",
        "test_modern.py::test_a_servers_state_that_looks_like_ours_comes_back_to_it_as_it_was",
    ],
    "What is answered here is merged with what the host answers, and never shown to it": [
        "test_modern.py::test_what_the_table_and_the_model_answer_a_legacy_host_never_sees",
        "test_modern.py::test_what_is_answered_here_is_kept_until_a_modern_host_brings_the_rest",
    ],
    "A round with a state only waits a moment; after ten rounds a call is ended": [
        "test_modern.py::test_a_round_with_a_state_only_is_tried_again_after_a_moment",
        "test_modern.py::test_a_server_that_never_has_enough_is_stopped_after_ten_rounds",
    ],
    "prompts/get and resources/read carry questions as tools/call does": [
        "test_modern.py::test_a_prompt_and_a_resource_can_be_parked_too",
        "test_properties.py::Bridge",
    ],
    # ── 2026-07-28, basic/index ──
    "A request's id is a string or a number, is never null, and is not used again while it is open": [
        "test_core.py::test_a_request_with_an_id_of_another_type_is_refused_without_one",
        "test_core.py::test_an_id_that_is_still_open_is_refused",
        "test_properties.py::Traffic",
    ],
    "A result has a resultType; where a server gives none it is complete": [
        "test_modern.py::test_every_result_to_a_modern_host_has_its_type",
        "test_modern.py::test_a_modern_host_lists_and_calls_servers_of_both_eras",
    ],
    "A resultType of no declared extension is invalid": [
        "test_modern.py::test_a_result_type_that_nobody_knows_is_refused",
    ],
    "An error has an integer code and a message": [
        "test_core.py::test_an_answer_that_is_none_ends_its_call_with_the_reason",
    ],
    "Defined codes are used with their meaning only": [
        "test_modern.py::test_pages_that_are_none_or_that_the_table_forbids_are_no_missing_capability",
        "test_modern.py::test_a_modern_host_hears_no_codes_of_the_legacy_era",
    ],
    "A modern notification gets no response": ["test_modern.py::test_a_modern_hosts_notifications_are_never_answered"],
    "What a request may do is read from that request and from none before it": [
        "test_modern.py::test_a_modern_hosts_envelope_is_never_invented",
        "test_modern.py::test_a_retry_is_asked_again_only_for_what_it_declares_itself",
        "test_modern.py::test_log_messages_reach_a_modern_host_during_a_call_that_wants_them",
    ],
    "A request without a required field of the envelope is -32602": [
        "test_modern.py::test_an_envelope_that_is_not_whole_is_refused",
        "test_modern.py::test_an_envelope_without_capabilities_is_refused",
    ],
    "Every request to a modern server has the envelope": [
        "test_modern.py::test_a_modern_host_lists_and_calls_servers_of_both_eras",
        "test_modern.py::test_a_modern_server_is_found_by_a_legacy_host_on_the_same_pipe",
    ],
    "A server is not told a capability that this host request did not declare, and a missing one is named": [
        "test_modern.py::test_a_modern_hosts_envelope_is_never_invented",
        "test_modern.py::test_a_host_that_cannot_open_pages_is_told_what_is_missing",
    ],
    "Trace context and other keys of _meta pass": [
        "test_modern.py::test_a_modern_host_lists_and_calls_servers_of_both_eras",
    ],
    "Schemas, and references in them, are passed on and never followed: the core does no I/O": [
        "test_architecture.py::test_the_core_names_nothing_that_does_io",
        "test_catalogue.py::test_an_entry_is_made_valid_where_it_can_be",
    ],
    # ── 2026-07-28, basic/versioning and server/discover ──
    "A version that we do not speak is -32022, with what was requested and what is supported": [
        "test_modern.py::test_an_envelope_that_is_not_whole_is_refused",
    ],
    "server/discover is served, and starts nothing": [
        "test_modern.py::test_discover_says_who_we_are_and_starts_nothing",
    ],
    "Extensions that only one side has fall back to the core protocol or to an error": [
        "test_modern.py::test_a_result_type_that_nobody_knows_is_refused",
        "test_modern.py::test_where_a_host_follows_tasks_of_the_modern_era_the_model_answers_nothing",
    ],
    # ── 2026-07-28, basic/transports/stdio ──
    "A message is one line without a newline inside": [
        "test_wire.py::test_lines_are_the_same_however_they_are_chunked",
        "test_faults.py::test_unknown_members_of_a_message_do_not_reach_the_host",
    ],
    "Nothing but messages is written to the host": [
        "test_processes.py::test_a_helper_command_can_neither_read_from_the_host_nor_write_to_it",
        "test_processes.py::test_the_standard_descriptors_of_mcpmux_itself_lead_away_from_the_protocol",
    ],
    "A modern server is sent requests, and notifications that its era has; no responses": [
        "test_modern.py::test_a_modern_server_is_told_of_what_is_cancelled_and_of_nothing_that_its_era_has_not",
        "test_modern.py::test_when_another_call_is_cancelled_the_questions_of_this_one_stay_open",
        "test_modern.py::test_a_modern_server_hears_no_progress_of_the_host",
    ],
    "A modern host is sent no requests": [
        "test_modern.py::test_a_modern_host_is_asked_nothing_and_told_nothing_it_did_not_want",
        "test_properties.py::Bridge",
    ],
    "A request is cancelled by a notification with its id; nothing more is sent for it": [
        "test_modern.py::test_a_modern_server_is_told_of_what_is_cancelled_and_of_nothing_that_its_era_has_not",
        "test_core.py::test_a_cancelled_call_is_cancelled_at_its_server_and_never_answered",
    ],
    "A server that exits is started again, and our subscription with it": [
        "test_modern.py::test_a_server_that_ends_our_subscription_is_listened_to_again_with_backoff",
        "test_core.py::test_a_dead_server_stays_listed_and_is_started_again_at_the_next_call",
    ],
    "Servers are stopped by closing their input first, and by force only then": [
        "test_processes.py::test_a_server_may_end_by_itself_before_it_is_told_and_told_before_it_is_killed",
    ],
    # ── 2026-07-28, basic/patterns ──
    "Only requests that were made and are open are cancelled, and a late or unknown cancellation does no harm": [
        "test_properties.py::Questions",
        "test_properties.py::Bridge",
        "test_core.py::test_cancelling_what_is_not_open_does_nothing",
    ],
    "A request that takes too long is cancelled, however much progress it makes": [
        "test_core.py::test_a_call_that_takes_too_long_is_cancelled_and_the_host_told",
        "test_core.py::test_progress_keeps_a_call_alive_up_to_ten_times_its_timeout",
    ],
    "Progress has the token of an open request, rises, and stops with its end": [
        "test_core.py::test_progress_after_the_answer_or_without_a_token_or_for_another_server_is_dropped",
        "test_core.py::test_progress_that_does_not_rise_is_dropped",
        "test_properties.py::Bridge",
    ],
    "input_required has questions or a state, known questions only, and comes on the three requests that carry it": [
        "test_modern.py::test_questions_that_may_not_be_asked_end_the_request_with_an_error",
        "test_modern.py::test_every_result_to_a_modern_host_has_its_type",
    ],
    "A retry has another id, all that was asked for in its round, and the state exactly as given, or none": [
        "test_modern.py::test_a_legacy_host_is_asked_all_at_once_and_the_call_is_made_again",
        "test_modern.py::test_a_round_with_a_state_only_is_tried_again_after_a_moment",
        "test_properties.py::Bridge",
    ],
    "Answers and state go into the retry of their own call and into no other": ["test_properties.py::Bridge"],
    "A state is an attacker's until it is found to be ours, and is good once": [
        "test_modern.py::test_a_retry_with_other_arguments_is_refused_and_the_right_one_still_works",
        "test_modern.py::test_questions_that_come_together_travel_together_and_missing_answers_are_asked_for_again",
    ],
    "A host need not come back": ["test_modern.py::test_a_host_that_never_comes_back_ends_the_call_and_the_question"],
    "A subscription is acknowledged, with what is honoured, before anything else of it": [
        "test_modern.py::test_a_subscription_that_waits_for_the_lists_is_acknowledged_before_anything_else_of_it",
    ],
    "A subscription brings what was asked for, under the id of its request in its own type, and nothing else": [
        "test_modern.py::test_a_listener_hears_what_it_asked_for_and_nothing_else",
        "test_modern.py::test_a_modern_host_is_asked_nothing_and_told_nothing_it_did_not_want",
    ],
    "A cancelled subscription is silent; one that we end ends with its result": [
        "test_modern.py::test_a_subscription_without_a_filter_is_refused_and_a_cancelled_one_never_answered",
        "test_modern.py::test_subscriptions_end_with_their_result_when_we_stop",
    ],
    "What a server tells of a subscription is known by its id": [
        "test_modern.py::test_a_wider_subscription_at_a_server_is_acknowledged_before_the_narrower_ends",
        "test_modern.py::test_what_only_extensions_know_of_a_filter_goes_to_modern_servers_and_task_ids_to_their_owner",
    ],
    # ── 2026-07-28, server/utilities ──
    "Results that may be cached say for how long and for whom, and questions do not": [
        "test_modern.py::test_what_may_be_cached_says_for_how_long_and_what_a_legacy_server_is",
        "test_modern.py::test_discover_says_who_we_are_and_starts_nothing",
    ],
    "Log messages come only during a request that asks for them, at its level or above, and not by subscription": [
        "test_modern.py::test_log_messages_reach_a_modern_host_during_a_call_that_wants_them",
        "test_modern.py::test_a_modern_host_is_asked_nothing_and_told_nothing_it_did_not_want",
    ],
    "logging is declared": [
        "test_eras.py::test_the_host_is_told_the_same_whoever_is_up_and_what_only_servers_can_make_true_is_united"
    ],
    # ── 2026-07-28, client ──
    "An elicitation without a mode is a form; {} declares forms only": [
        "test_eras.py::test_an_empty_elicitation_capability_means_form",
        "test_bridge.py::test_a_question_is_forwarded_answered_or_refused",
    ],
    "Who asks is said in each elicitation, in both eras; all else of it, its URL too, is for the host as it was": [
        "test_modern.py::test_between_modern_peers_questions_pass_with_the_servers_name_and_nothing_is_kept",
        "test_modern.py::test_a_legacy_servers_question_parks_the_call_and_the_retry_stands_for_it",
        "test_bridge.py::test_only_the_message_of_an_elicitation_is_changed",
    ],
    "A decline or cancel of the person reaches the server": [
        "test_modern.py::test_the_new_call_is_made_after_60_s_without_word_and_not_at_all_after_a_no",
        "test_properties.py::Bridge",
    ],
    "Roots are file URIs": ["test_config.py::test_a_root_is_a_folder_or_a_file_uri"],
    "Sampling with tools goes only where sampling.tools was declared": [
        "test_bridge.py::test_a_servers_policy_the_host_and_the_model_decide_who_is_asked",
        "test_eras.py::test_what_a_server_is_told_of_sampling_is_what_it_then_gets",
    ],
    "Each use of a tool has its result in the next message, which has nothing else": [
        "test_bridge.py::test_each_use_of_a_tool_has_its_result_in_the_next_message_and_that_has_nothing_else",
    ],
    # ── 2026-07-28, basic/transports/streamable-http; 2025-11-25, basic/transports ──
    "Each message is a POST with the headers of its era": [
        "test_remote.py::test_every_request_of_the_modern_era_has_its_headers",
        "test_remote.py::test_a_forgotten_session_is_begun_anew_and_the_call_is_answered",
    ],
    "Values that no header can hold are encoded": [
        "test_remote.py::test_every_request_of_the_modern_era_has_its_headers"
    ],
    "Arguments go into headers where a tool's schema says so, and a tool that says it wrongly is left out": [
        "test_remote.py::test_arguments_are_repeated_in_headers_where_the_schema_says_so",
        "test_remote.py::test_a_tool_with_a_wrong_x_mcp_header_is_left_out_over_http_only",
        "test_remote.py::test_every_request_of_the_modern_era_has_its_headers",
    ],
    "JSON and streams are taken alike, byte for byte": [
        "test_remote.py::test_payloads_pass_byte_for_byte_both_ways",
        "test_remote.py::test_a_stream_says_the_same_whatever_its_chunks",
        "test_remote.py::test_a_batch_is_taken_apart_where_the_revision_has_them",
    ],
    "A modern request is cancelled by the end of its stream, a legacy one by a notification": [
        "test_remote.py::test_a_cancelled_call_is_the_end_of_its_stream_and_of_nothing_else",
        "third_party/test_remote.py::test_progress_arrives_step_by_step_and_a_call_that_its_host_cancels_is_cancelled",
    ],
    "The body's error counts more than the status": [
        "test_remote.py::test_the_protocols_own_error_counts_more_than_the_status",
        "test_remote.py::test_an_error_with_the_id_of_a_request_is_its_answer_in_a_session_too",
    ],
    "A server that knows SSE only is found out": [
        "third_party/test_remote.py::test_what_a_server_asks_in_the_middle_of_a_request_is_answered",
        "third_party/test_remote.py::test_sse_can_be_asked_for",
    ],
    "A session is named in each request, ended at the end, and begun anew where it was forgotten": [
        "test_remote.py::test_a_forgotten_session_is_begun_anew_and_the_call_is_answered",
    ],
    "What is refused in a session may mean that it is lost: one new handshake, whatever the words": [
        "test_remote.py::test_whatever_a_server_says_that_has_lost_a_session_one_new_handshake_and_the_call_is_answered",
        "test_remote.py::test_a_server_that_refuses_a_call_in_a_new_session_too_is_believed",
        "test_remote.py::test_a_server_without_a_stream_of_its_own_has_a_session_all_the_same",
        "test_remote.py::test_a_notification_that_is_not_found_says_nothing_of_the_session",
    ],
    "A stream that breaks is asked for again from its last event, after the time that its server gave": [
        "test_remote.py::test_a_stream_that_breaks_is_gone_on_with_where_it_stopped",
    ],
    "A legacy server's own stream is listened to": [
        "test_remote.py::test_what_a_server_says_unasked_is_heard_on_its_own_stream",
    ],
    # ── 2026-07-28, basic/authorization ──
    "The way to a login is found, with PKCE and the resource named, as a client of any of the three kinds": [
        "third_party/test_remote.py::test_a_login_is_made_used_renewed_revoked_and_forgotten",
        "test_remote.py::test_a_login_as_a_client_of_ones_own",
        "test_remote.py::test_an_issuer_is_the_same_with_a_slash_after_an_empty_path_and_without",
        "test_remote.py::test_a_login_that_only_a_tool_call_asks_for_is_made",
        "test_remote.py::test_only_the_browser_that_was_sent_brings_an_answer",
    ],
    "A login is renewed, once whoever wants it, and is for its owner's eyes": [
        "test_remote.py::test_one_refresh_token_is_used_once_however_many_want_it",
        "test_remote.py::test_a_login_is_kept_for_its_owner_only_and_read_back",
        "test_remote.py::test_a_login_belongs_to_a_table_and_one_of_the_url_alone_is_taken_over_once",
        "test_remote.py::test_a_login_goes_over_plain_http_to_this_machine_only",
    ],
    "maxTokens is kept to": [
        "test_bridge.py::test_the_model_is_allowed_as_many_tokens_as_were_asked_for_and_never_more_than_the_limit",
    ],
}


@functools.cache
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
