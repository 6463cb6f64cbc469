from __future__ import annotations

from eucaim_fl.cohorts.deidentification.vocabulary import AFFIXES, CLINICAL_WORDS, LAYOUT_WORDS, WORDS
from eucaim_fl.cohorts.deidentification.words import tokens


class TestVocabulary:
    def test_every_word_is_one_token_in_lower_case_without_accents(self) -> None:
        for word in WORDS | AFFIXES | LAYOUT_WORDS | CLINICAL_WORDS:
            assert tokens(word) == [word]

    def test_it_has_several_hundred_words(self) -> None:
        assert len(WORDS) > 800
