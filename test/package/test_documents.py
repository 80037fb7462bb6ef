"""What the documents name is there: files, folders, commands, links."""

from importlib.util import find_spec
from pathlib import Path
import re

import pytest

from flash_llm_ros.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('doc/*.md'), *ROOT.glob('bench/*.md')])
BASES = (ROOT, *(ROOT / name for name in ('flash_llm_ros', 'flash_llm_msgs', 'native', 'test')))
SOURCE = re.compile(r'(?:[\w.-]+/)*[\w.-]+\.(?:py|cpp|hpp|c|yaml|xml|msg|ffn|sh)')
NOT_OURS = {'manifest.yaml', 'profile.yaml',        # of stores
            'DEFAULT_FASTRTPS_PROFILES.xml'}        # of robots


def named_sources(text):
    """Paths in backticks, the later ones of a list relative to the folder of the first."""
    for line in text.splitlines():
        folder = Path()
        for quoted in re.findall(r'`([^`]+)`', line):
            if '*' not in quoted and SOURCE.fullmatch(quoted):
                yield folder, quoted
                if '/' in quoted:
                    folder = Path(quoted).parent


def is_there(folder, name):
    places = [base / path for base in BASES for path in (Path(name), folder / name)]
    return any(place.exists() for place in places) or (
        '/' not in name and any(next(base.rglob(name), None) for base in BASES[1:]))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    named = [(folder, name) for folder, name in named_sources(page.read_text())
             if name not in NOT_OURS]
    assert [name for folder, name in named if not is_there(folder, name)] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    links = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_names_exist(page):
    text = page.read_text()
    # Capitals stand for something that the reader puts there.
    modules = set(re.findall(r'python -m ([a-z_]+(?:\.[a-z_]+)*)(?![\w.])', text)) | set(
        re.findall(r'\b(bench\.[a-z_]+\.[a-z_]+)\b', text))
    verbs = set(re.findall(r'`flash_llm ([a-z]+)', text)) | set(
        re.findall(r'^ +flash_llm ([a-z]+)', text, re.MULTILINE))
    assert [name for name in modules if find_spec(name) is None] == []
    assert verbs - COMMANDS.keys() == set()
