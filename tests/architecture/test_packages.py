"""The folders are what the project file and the tests take them for.

- Every Python file can be parsed.
- The packages imported here are those of this repository, not of an installed namesake.
- pyproject.toml lists exactly the package folders there are.
- `__init__.py` files hold a docstring at most, so that importing one module loads no other.
- Each test file has the source whose name it bears.
- Each declared dependency is pinned.
"""

import ast
import importlib
import re
import tomllib
from pathlib import Path, PurePosixPath

from source_tree import PACKAGES, REPOSITORY, all_sources, package_sources, unparsable

FREE_FOLDERS = {"architecture", "benchmarks", "hosts", "invariants"}


def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def package_folders() -> set[str]:
    return {str(PurePosixPath(source.path).parent) for source in package_sources()}


def sourceless_tests(test_paths: list[str], root: Path) -> list[str]:
    """Test files that bear the name of no source file and no package."""
    strays = []
    for path in map(PurePosixPath, test_paths):
        folder = path.parent.relative_to("tests")
        if not path.name.startswith("test_") or (folder.parts and folder.parts[0] in FREE_FOLDERS):
            continue
        source = root / folder / path.stem.removeprefix("test_")
        if not (source.with_suffix(".py").is_file() or (source / "__init__.py").is_file()):
            strays.append(str(path))
    return strays


def test_every_file_is_python():
    assert unparsable() == []


def test_packages_are_those_of_this_repository():
    found = [name for name in PACKAGES if (REPOSITORY / name).is_dir()]
    assert "trainer" in found
    for name in found:
        assert Path(importlib.import_module(name).__file__) == REPOSITORY / name / "__init__.py"


def test_project_file_lists_exactly_the_package_folders():
    listed = project()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(folder.replace("/", ".") for folder in package_folders())


def test_every_package_folder_has_an_empty_init():
    trees = {source.path: source.tree for source in package_sources()}
    for folder in package_folders():
        tree = trees.get(f"{folder}/__init__.py")
        assert tree is not None, f"{folder}/__init__.py is missing"
        without_docstring = tree.body[1:] if ast.get_docstring(tree) else tree.body
        assert without_docstring == [], f"{folder}/__init__.py holds code"


def test_test_folders_are_no_packages():
    tests = [source.path for source in all_sources() if source.path.startswith("tests/")]
    assert "tests/architecture/test_packages.py" in tests
    assert [path for path in tests if path.endswith("__init__.py")] == []


def test_every_test_file_has_its_source():
    tests = [source.path for source in all_sources() if source.path.startswith("tests/")]
    assert sourceless_tests(tests, REPOSITORY) == []


def test_a_test_without_source_is_found(tmp_path):
    (tmp_path / "comms").mkdir()
    (tmp_path / "comms" / "groups.py").touch()
    paths = ["tests/comms/test_groups.py", "tests/comms/test_gone.py", "tests/hosts/test_any.py"]
    assert sourceless_tests(paths, tmp_path) == ["tests/comms/test_gone.py"]


def test_every_dependency_is_pinned():
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name)[0]).lower()

    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    needed = project()["project"]
    names = [*needed["dependencies"], *needed["optional-dependencies"]["dev"]]
    assert {plain(name) for name in names} - {plain(pin) for pin in pins} == set()
