#!/usr/bin/env python3
"""Takes the steps of the Dockerfile beside it on a bare Debian tree, where no container engine can be had.

    sudo deploy/docker/replay.py FOLDER [NAME=VALUE...]

Needs root, debootstrap, and a Rust toolchain on this machine, which stands in for the rust image's: it is lent to the stage by
bind mounts. Knows FROM, ARG, COPY, RUN, ENV, LABEL and WORKDIR as the Dockerfile uses them; NAME=VALUE stands for --build-arg.
The last stage ends up in FOLDER/image; its contents with their sizes and the program's SHA-256 are printed, and FOLDER/image.json
keeps what the Dockerfile says about it. RUN gets this machine's settings for proxies, certificates and registries, as a build
behind a proxy would.
"""

import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Settings of this machine's network that a build inherits, and how many jobs it may run.
NETWORK = re.compile(r"(?i)(https?|no)_proxy|ssl_cert_file|cargo_(http|net|registries|registry|source)_.*|cargo_build_jobs")


def run(*command, **more):
    subprocess.run(command, check=True, **more)


def instructions(text):
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


class Stage:
    def __init__(self, folder, image):
        self.folder, self.variables, self.workdir, self.mounts = folder, {}, "/", []
        self.arguments, self.labels = {}, {}
        folder.mkdir(parents=True, exist_ok=True)
        if image != "scratch":
            suite = image.rsplit("-", 1)[-1]
            run("debootstrap", "--variant=minbase", "--include=gcc,libc6-dev", suite, folder, stdout=subprocess.DEVNULL)
            for name in ("resolv.conf", "hosts"):
                shutil.copy(f"/etc/{name}", folder / "etc" / name)
            for ours, theirs in (
                (os.environ.get("RUSTUP_HOME", os.path.expanduser("~/.rustup")), "usr/local/rustup"),
                (os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo")), "usr/local/cargo"),
                ("/proc", "proc"),
                ("/dev", "dev"),
            ):
                (folder / theirs).mkdir(parents=True, exist_ok=True)
                run("mount", "--rbind", "--make-rslave", ours, folder / theirs)
                self.mounts.append(folder / theirs)
            for name in os.environ:
                if re.fullmatch(r"(?i)ssl_cert_file|cargo_http_cainfo", name):
                    shutil.copy(os.environ[name], folder / "etc" / "replay-ca.pem")
            self.variables = {"RUSTUP_HOME": "/usr/local/rustup", "CARGO_HOME": "/usr/local/cargo"}

    def close(self):
        for mount in reversed(self.mounts):
            run("umount", "--recursive", "--lazy", mount)

    def command(self, line):
        network = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
        for name in network:
            if re.fullmatch(r"(?i)ssl_cert_file|cargo_http_cainfo", name):
                network[name] = "/etc/replay-ca.pem"
        path = "/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = {"PATH": path, "HOME": "/root", **network, **self.arguments, **self.variables}
        run("chroot", self.folder, "/bin/sh", "-ec", f"cd {self.workdir}\n{line}", env=variables)

    def copy(self, rest, stages):
        words = shlex.split(rest)
        origin = ROOT
        if words[0].startswith("--from="):
            origin = stages[words.pop(0).removeprefix("--from=")].folder
        *sources, target = words
        target_path = self.folder / os.path.join(self.workdir, target).lstrip("/")
        for source in sources:
            source_path = origin / source.lstrip("/")
            if source_path.is_dir():
                run("cp", "-a", f"{source_path}/.", target_path) if target_path.is_dir() else run(
                    "cp", "-a", source_path, self.made(target_path)
                )
            else:
                into = target_path / source_path.name if target.endswith(("/", ".")) else target_path
                shutil.copy2(source_path, self.made(into))

    @staticmethod
    def made(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def replay(folder, given):
    stages, stage, name = {}, None, ""
    kept = []
    try:
        for word, rest in instructions((ROOT / "deploy/docker/Dockerfile").read_text()):
            print(f"{name or '-':8} {word} {rest[:100]}", flush=True)
            match word:
                case "FROM":
                    image, _, name = rest.partition(" AS ")
                    name = name or "image"
                    stage = stages[name] = Stage(folder / name, image)
                case "WORKDIR":
                    stage.workdir = rest
                    (stage.folder / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
                case "ENV":
                    key, _, value = rest.partition("=")
                    stage.variables[key] = value
                case "ARG":
                    key, _, value = rest.partition("=")
                    stage.arguments[key] = given.get(key, value)
                case "LABEL":
                    for pair in shlex.split(rest):
                        key, _, value = pair.partition("=")
                        stage.labels[key] = re.sub(r"\$(\w+)", lambda name: stage.arguments[name[1]], value)
                case "COPY":
                    stage.copy(rest, stages)
                case "RUN":
                    stage.command(rest)
                case _:
                    kept.append((word, rest))
    finally:
        for each in stages.values():
            each.close()
    return stage, kept


def main(folder, given):
    folder = pathlib.Path(folder).resolve()
    image, kept = replay(folder, given)
    files = sorted(path for path in image.folder.rglob("*") if path.is_file() and not path.is_symlink())
    templates = image.folder / "usr/share/postrider/templates"
    total = 0
    for path in files:
        size = path.stat().st_size
        total += size
        if templates not in path.parents:
            print(f"{size:>12,}  /{path.relative_to(image.folder)}")
    inside = [path for path in files if templates in path.parents]
    print(f"{sum(path.stat().st_size for path in inside):>12,}  /usr/share/postrider/templates ({len(inside)} files)")
    print(f"{total:>12,}  bytes in {len(files)} files")
    program = (image.folder / "usr/local/bin/postrider").read_bytes()
    print(f"{hashlib.sha256(program).hexdigest()}  /usr/local/bin/postrider")
    told = dict(kept) | {"ENV": image.variables, "LABEL": image.labels}
    (folder / "image.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not all("=" in word for word in sys.argv[2:]):
        sys.exit(__doc__)
    main(sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:]))
