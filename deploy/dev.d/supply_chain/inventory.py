"""Reads what cargo says the program is made of, and makes the bill of materials say the same.

Takes `cargo metadata` on stdin, and two listings of `cargo tree`: what is linked into the program, and that with what builds it.
"""

import argparse
import json
import pathlib
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def listed(path):
    """Name and version of each crate of a listing, and of those that are macros."""
    every, macros = set(), set()
    for line in pathlib.Path(path).read_text().splitlines():
        words = line.split()
        # Headings of sections stand in brackets.
        if len(words) < 2 or words[0].startswith("["):
            continue
        crate = (words[0], words[1].removeprefix("v"))
        every.add(crate)
        if "(proc-macro)" in words:
            macros.add(crate)
    return every, macros


def prune(bom, linked):
    """Leaves what is linked: cargo-cyclonedx goes by the lock file's graph, where what no feature asks for is as well."""
    every = bom["components"]
    bom["components"] = [each for each in every if (each["name"], each["version"]) in linked]
    kept = {each["bom-ref"] for each in bom["components"]} | {bom["metadata"]["component"]["bom-ref"]}
    bom["dependencies"] = [
        each | {"dependsOn": [ref for ref in each["dependsOn"] if ref in kept]} if "dependsOn" in each else each
        for each in bom["dependencies"]
        if each["ref"] in kept
    ]
    return len(every) - len(bom["components"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bom", required=True)
    parser.add_argument("--linked", required=True)
    parser.add_argument("--building", required=True)
    options = parser.parse_args()
    metadata = json.load(sys.stdin)
    packages = {(package["name"], package["version"]): package for package in metadata["packages"]}
    root = next(package for package in packages.values() if package["id"] == metadata["resolve"]["root"])
    linked, _ = listed(options.linked)
    building, macros = listed(options.building)
    ours = {(root["name"], root["version"])}
    linked, building = linked - ours, building - ours
    scripts = sorted(
        name for name, version in building
        if any("custom-build" in target["kind"] for target in packages[name, version]["targets"])
    )
    native = sorted({packages[each]["links"] for each in building if packages[each].get("links")})
    print(f"{len(linked)} crates linked into the program, {len(building)} with macros and what else builds it")
    print(f"{len(scripts)} have a build script: {', '.join(scripts)}")
    print(f"{len(macros)} are macros: {', '.join(sorted(name for name, _ in macros))}")
    print(f"{len(native)} claim a native library: {', '.join(native)}")

    path = pathlib.Path(options.bom)
    # Where this machine keeps the sources is nobody's business, and would make two of one commit differ.
    folder = pathlib.Path(root["manifest_path"]).parent
    bom = json.loads(path.read_text().replace(f"path+file://{folder}#", ""))
    surplus = prune(bom, linked)
    text = json.dumps(bom, indent=2, ensure_ascii=False) + "\n"
    fault = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    if fault:
        sys.exit(f"{path} is not CycloneDX 1.5: {fault}")
    missing = linked - {(each["name"], each["version"]) for each in bom["components"]}
    if missing:
        sys.exit(f"{path} does not name {sorted(missing)}")
    bare = sorted(each["name"] for each in bom["components"] if not each.get("licenses") or not each.get("hashes"))
    if bare:
        sys.exit(f"{path} gives no licence or no SHA-256 for {bare}")
    path.write_text(text)
    count = len(bom["components"])
    print(f"{path}: CycloneDX 1.5, {count} crates, each with licence and SHA-256 ({surplus} left out that are not linked)")


if __name__ == "__main__":
    main()
