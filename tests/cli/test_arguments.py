"""What the programs' command lines share."""

from __future__ import annotations

import pytest

from salience_detr.cli.arguments import Parser, number, run_program


@pytest.fixture
def parser() -> Parser:
    parser = Parser()
    parser.add_config()
    parser.add_argument("--input", nargs="+")
    parser.add_argument("--verify", nargs="*")
    parser.add_argument("--output")
    parser.add_argument("--count", type=number(int, 1, 9))
    return parser


def test_overrides_may_stand_anywhere_in_their_order(parser):
    words = "x=1 --config-file F --input a.jpg b.jpg y=2 --verify z=3 --count 9 +x=4"
    args = parser.parse(words.split())
    assert args.opts == ["x=1", "y=2", "z=3", "+x=4"]
    assert args.input == ["a.jpg", "b.jpg"] and args.verify == []


def test_paths_with_an_equals_sign_are_no_overrides(parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=1.jpg").touch()
    words = "--config-file F --output b=2 --input a=1.jpg new/c=3.jpg"
    args = parser.parse(words.split())
    assert args.output == "b=2" and args.opts == []
    assert args.input == ["a=1.jpg", "new/c=3.jpg"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--count 0", "argument --count: it is 0, and must be between 1 and 9"),
        ("--count many", "argument --count: invalid int value: 'many'"),
        ("--input x=1", "argument --input: expected at least one argument"),
    ],
)
def test_a_wrong_word_is_one_line(parser, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        parser.parse(["--config-file", "F", *words.split()])
    assert capsys.readouterr().err == f"error: {message}; see --help\n"


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (OSError("the disk\nis full"), 2, "error: the disk is full\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_ends_a_program_is_one_line_and_an_exit_code(parser, capsys, error, code, printed):
    def program(args):
        raise error

    assert run_program(program, parser.parse(["--config-file", "F"])) == code
    assert capsys.readouterr().err == printed


def test_a_program_without_an_exit_code_has_succeeded(parser):
    args = parser.parse(["--config-file", "F"])
    assert run_program(lambda args: None, args) == 0
    assert run_program(lambda args: 1, args) == 1


@pytest.mark.parametrize("words", [["--output", ""], ["--output="]])
def test_an_empty_value_is_refused(parser, capsys, words):
    # "$RUN" of a variable that is not set: the path would be the current folder.
    for parse in (parser.parse, parser.parse_args):
        with pytest.raises(SystemExit, match="2"):
            parse(["--config-file", "F", *words])
        assert "error: --output is given an empty word" in capsys.readouterr().err
