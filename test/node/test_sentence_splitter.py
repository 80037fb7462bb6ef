"""Text becomes sentences, the same ones wherever its pieces are cut."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from flash_llm_ros.node.interfaces import sentence_splitter
from flash_llm_ros.node.interfaces.sentence_splitter import MOST_CHARACTERS, SentenceSplitter

# What a person would read aloud in one go, between bars.
TEXTS = {
    'plain': 'I am ready.|Where shall I go?|Go!|Now',
    'numbers': 'Pi is 3.14, e is 2.718.|It costs $1.50 or 1,000.50.|Version 2.1.3 is new.',
    'a number at the end': 'I see 5.|Two are red.',
    'abbreviations': 'Dr. Ho met Mrs. Lee, e.g. in St. Louis, at 10 a.m. on Monday.|They left.',
    'before numbers': 'See fig. 3 and No. 5.|No.|I will not.|It takes approx. 20 s.',
    'initials': 'J. R. R. Tolkien wrote it.|The U.S. Navy did not.',
    'ellipsis': 'Well... maybe.|Wait…|What was that?!|Nothing...|Fine.',
    'quotes': 'He said "Stop."|Then he left.|"Who?" she asked.|(Nobody knows.)|\'Yes!\'|So be it.',
    'names with dots': 'Look at www.ros.org or map.yaml first.|Then start.',
    'lines': 'Steps:|1. Open the door.|2. Drive in|- Wait.|Is it dark?|# Done|End',
    'German': 'Das ist z.B. die Tür.|Nr. 3 ist zu.|Ca. 20 m weiter.',
    'French': 'Qui est là ?|M. Dupont et Mme. Blanc.|« Entrez ! »|Merci.',
    'Chinese': '你好。|我在这里！|你要去哪里？|「好的。」|走吧',
    'Japanese': 'はい。|わかりました！！|どこへ行きますか？|（待って。）|はい',
    'Arabic, Urdu and Hindi': 'أين أنت؟|أنا هنا.|میں یہاں ہوں۔|मैं यहाँ हूँ।|ठीक है॥|हाँ',
}
BETWEEN = {'lines': '\n', 'Chinese': '', 'Japanese': ''}


def sentences(pieces: list[str]) -> list[str]:
    splitter = SentenceSplitter()
    return [found for piece in pieces for found in splitter.add(piece)] + splitter.rest()


@pytest.mark.parametrize('name', TEXTS)
def test_sentences_are_those_that_a_person_reads(name: str) -> None:
    wanted = TEXTS[name].split('|')
    text = BETWEEN.get(name, ' ').join(wanted)
    assert sentences([text]) == wanted
    assert sentences(list(text)) == wanted


@given(st.lists(st.text('aB1 .!?…。！"」»)\n,')), st.sampled_from([3, 7, MOST_CHARACTERS]))
def test_pieces_do_not_matter_and_nothing_is_lost(pieces: list[str], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentence_splitter, 'MOST_CHARACTERS', most)
        found = sentences(pieces)
        assert found == sentences([''.join(pieces)])
    assert max(map(len, found), default=0) <= most
    assert [letter for letter in ''.join(found) if letter.isalnum()] == [
        letter for letter in ''.join(pieces) if letter.isalnum()]


def test_what_has_no_end_is_cut_between_words() -> None:
    found = sentences(['word ' * 1000])
    assert ' '.join(found).split() == ['word'] * 1000
    assert all(len(each) <= MOST_CHARACTERS for each in found)
    assert list(map(len, sentences(['x' * 2500]))) == [MOST_CHARACTERS, MOST_CHARACTERS, 500]


def test_a_sentence_is_told_as_soon_as_the_next_one_begins() -> None:
    splitter = SentenceSplitter()
    assert splitter.add('I am here. ') == []
    assert splitter.add('You') == ['I am here.']
    assert splitter.add(' too.\n') == ['You too.'] and splitter.rest() == []
