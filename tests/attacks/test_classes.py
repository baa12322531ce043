"""Each class of attack that is defended against, and the tests that would notice if it no longer were."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).resolve().parents[1]

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "objects altered or swapped with another place, file, volume or age": (
        "attacks/test_exchange.py::test_two_providers_may_show_anything_instead",
        "attacks/test_exchange.py::test_an_older_head_under_the_newest_name_is_not_believed",
        "crypto/test_sealing.py::test_a_record_opens_nowhere_else",
        "crypto/test_chunks.py::test_an_older_state_of_a_chunk_does_not_pass_for_the_newer",
        "format/test_share.py::test_every_cut_extension_and_exchange_of_a_share_is_detected",
        "format/test_run.py::test_damage_of_every_kind_is_refused",
    ),
    "rollback, fork, lost writes, withheld shares, slow answers": (
        "attacks/test_places_lost.py::test_a_machine_that_remembers_notices_a_rollback_and_publishes_its_records_anew",
        "attacks/test_places_lost.py::test_a_machine_that_does_not_remember_is_told_the_age_and_refuses_below_at_least",
        "attacks/test_places_lost.py::test_the_newest_head_withheld_by_any_two_is_found_at_the_others",
        "attacks/test_places_lost.py::test_what_an_emptied_place_held_is_stored_there_again",
        "attacks/test_slow.py::test_reading_waits_for_a_silent_provider_once_and_not_with_every_chunk",
        "volume/test_crash.py::test_of_two_copies_that_publish_at_once_at_most_one_goes_on",
        "transfer/test_engine.py::test_a_withheld_share_is_named_as_missing",
        "providers/test_faults.py::test_lost_put_is_accepted_and_forgotten",
    ),
    "one bad share in a rebuild; huge lengths, deep nesting": (
        "transfer/test_engine.py::test_lying_providers_poison_nothing_and_are_named",
        "transfer/test_engine.py::test_completing_never_stores_what_does_not_fit_its_root",
        "transfer/test_messages.py::test_nesting_and_absurd_lengths_are_refused",
        "format/test_share.py::test_a_huge_length_is_refused_before_anything_is_allocated",
        "format/test_segment.py::test_nesting_broken_text_and_size_are_capped",
        "providers/test_contract.py::test_endless_listing_ends",
    ),
    "key slots and cost parameters altered, absurd or downgraded; unknown versions": (
        "crypto/test_slots.py::test_a_slot_with_any_field_changed_does_not_open",
        "crypto/test_slots.py::test_absurd_costs_are_refused_before_anything_is_computed",
        "crypto/test_slots.py::test_a_later_version_is_told_from_damage",
        "format/test_head.py::test_an_authentic_newer_head_says_so",
    ),
    "nonces after a crash, a clone, or a restored state": (
        "attacks/test_copies.py::test_two_mounts_of_one_copied_state_seal_under_different_salts",
        "attacks/test_copies.py::test_the_second_of_two_copies_to_publish_is_stopped_and_overwrites_nothing",
        "volume/test_fence.py::test_an_old_copy_of_this_machines_own_state_is_fenced",
        "crypto/test_salts.py::test_a_salt_is_spent_after_its_seals_and_a_new_one_is_not",
    ),
    "hostile records": (
        "attacks/test_hostile_metadata.py::"
        "test_a_name_that_no_file_may_have_is_never_shown_and_harms_its_directory_alone",
        "attacks/test_hostile_metadata.py::test_directories_in_a_circle_hang_nobody",
        "attacks/test_hostile_metadata.py::test_a_name_that_is_there_twice_harms_its_directory_alone",
        "attacks/test_hostile_metadata.py::test_numbers_that_would_be_given_out_again_are_refused",
        "attacks/test_hostile_metadata.py::test_set_id_bits_and_devices_come_back_as_their_owner_made_them",
        "providers/test_contract.py::test_name_that_icnfs_never_makes_is_refused_before_anything_is_done",
    ),
    "a stolen disk, stolen provider credentials": (
        "acceptance/test_canaries.py::test_no_canary_lies_on_any_disk",
        "acceptance/test_canaries.py::test_no_canary_is_in_the_memory_of_transfer",
        "transfer/test_client.py::test_the_process_has_a_session_of_its_own_no_cores_and_no_secrets",
    ),
    "local users": (
        "fuse/test_options.py::test_the_kernel_always_checks_permissions",
        "control/test_server.py::test_another_user_is_not_answered",
        "control/test_server.py::test_socket_and_directory_are_for_their_owner_alone",
        "config/test_paths.py::test_private_directory_open_to_others_is_refused",
        "volume/test_real.py::test_directories_and_a_process_of_its_own_that_is_killed_midway",
    ),
    "core dumps, environment, arguments, tracebacks, repr, logs": (
        "crypto/test_hardening.py::test_a_hardened_process_is_not_dumpable",
        "crypto/test_hardening.py::test_secrets_vanish_from_the_environment_and_from_proc",
        "crypto/test_keys.py::test_a_secret_is_absent_from_tracebacks_that_show_locals",
        "acceptance/test_canaries.py::test_neither_process_leaves_a_core_dump",
        "acceptance/test_canaries.py::test_no_canary_is_in_arguments_or_environment_of_either_process",
        "control/test_log.py::test_control_characters_are_shown_not_sent",
    ),
    "what providers can tell": (
        "format/test_share.py::test_a_header_shows_nothing_but_sizes",
        "crypto/test_names.py::test_share_names_fit_every_provider_and_never_match",
        "crypto/test_slots.py::test_two_copies_for_two_providers_cannot_be_matched",
        "attacks/test_classes.py::test_the_threat_model_says_what_is_not_hidden",
    ),
}


@pytest.mark.parametrize("attack", CLASSES)
def test_its_tests_are_there(attack: str) -> None:
    for test in CLASSES[attack]:
        path, name = test.split("::")
        assert re.search(rf"^(async )?def {name}\(", (TESTS / path).read_text(), re.MULTILINE), test


def test_the_threat_model_says_what_is_not_hidden() -> None:
    page = (TESTS.parent / "man" / "icnfs.7").read_text()
    for words in (
        "What is not protected",
        "Sizes, counts and times",
        "network addresses",
        "capped before it is believed",
    ):
        assert words in page
