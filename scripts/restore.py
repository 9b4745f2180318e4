#!/usr/bin/env python3
"""Restores from a Lifeboat repository without Lifeboat.

Needs: Python 3.9 or newer (nothing but its standard library), and the programs age and zstd.

    restore.py REPOSITORY list [SOURCE]
    restore.py REPOSITORY verify [SOURCE]
    restore.py REPOSITORY restore SOURCE --identity FILE --to DIRECTORY (--at TIME | --run RUN)
    restore.py REPOSITORY needs SOURCE (--at TIME | --run RUN)

REPOSITORY is a directory: a copy of what is under the repository's URL (RESTORE.md says how to make one).
TIME is `latest`, or RFC 3339 with a zone, such as 2026-11-21T14:03:00Z or 2026-11-21T15:03:00+01:00: the newest
recovery point at or before it. RUN is a run that `list` shows.

Exit codes: 0 done, 1 failed, 2 usage, 10 no repository, 12 no identity opens it, 20 no point at that time,
21 damaged or missing objects.
"""

import argparse
import base64
import collections
import datetime
import hashlib
import heapq
import json
import os
import re
import struct
import subprocess
import sys

STRETCH = 16 << 20
FRAME_MAX = 4 << 20
HEAD_MAGIC = 0x184D2A50
MARKER = ".lifeboat-restore-incomplete"


class Problem(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def damaged(text):
    return Problem(21, text)


def run(command, data, secret=None):
    """Runs a program over bytes. A secret goes through a pipe, never to a file or an argument."""
    descriptors = ()
    if secret is not None:
        reading, writing = os.pipe()
        os.write(writing, secret)
        os.close(writing)
        command = command[:1] + ["-d", "-i", "/dev/fd/%d" % reading] + command[1:]
        descriptors = (reading,)
    try:
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=descriptors)
    except FileNotFoundError:
        raise Problem(1, "the program %s is missing: install it (Debian: apt-get install %s)" % (command[0], command[0]))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace").strip()


class Repository:
    def __init__(self, path):
        self.path = path
        try:
            line, _, digest = self.read("lifeboat.json").partition(b"\n")
        except Problem as problem:
            if problem.code != 21:
                raise
            raise Problem(10, "there is no repository in %s: lifeboat.json is missing" % path)
        try:
            head = json.loads(line)
        except ValueError:
            raise Problem(21, "lifeboat.json is damaged")
        least = head.get("least_reader", head.get("format")) if isinstance(head, dict) else None
        if not isinstance(least, int) or least > 1:
            raise Problem(1, "this repository wants a reader of format %s; this script knows 1" % least)
        if digest.strip().decode("ascii", "replace") != hashlib.sha256(line).hexdigest():
            raise Problem(21, "lifeboat.json is damaged: its digest is wrong")
        self.id = head["repository"]

    def read(self, key, digest=None):
        path = os.path.join(self.path, *key.split("/"))
        try:
            with open(path, "rb") as file:
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise damaged("%s is missing" % key)
        except (OSError, ValueError) as error:
            raise Problem(1, "can not read %s: %s" % (path, error))
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise damaged("%s is not what was written: its SHA-256 differs" % key)
        return data

    def names(self, prefix):
        try:
            return sorted(os.listdir(os.path.join(self.path, *prefix.split("/"))))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError) as error:
            raise Problem(1, "can not list %s in %s: %s" % (prefix, self.path, error))

    def sources(self):
        return [n for n in self.names("sources") if not n.startswith(".")]

    def check_place(self, found, key, source, run):
        if (found.get("repository"), found.get("source"), found.get("run")) != (self.id, source, run):
            raise damaged("%s belongs elsewhere" % key)

    def commit(self, source, run):
        key = "sources/%s/points/%s.json" % (source, run)
        lines = self.read(key).split(b"\n")
        if len(lines) != 3 or lines[2] or hashlib.sha256(lines[0]).hexdigest().encode() != lines[1]:
            raise damaged("%s is damaged: its digest is wrong" % key)
        commit = json.loads(lines[0])
        if commit.get("format") != 1 or commit.get("must_understand"):
            raise Problem(1, "%s is of a format that this script does not know" % key)
        self.check_place(commit, key, source, run)
        return commit

    def points(self, source):
        for name in self.names("sources/%s/points" % source):
            if name.endswith(".json"):
                yield name[:-5]

    def refs(self, source, commit):
        key = "sources/%s/runs/%s/refs" % (source, commit["run"])
        lines = [l for l in self.read(key, commit["refs"]).split(b"\n") if l]
        self.check_place(json.loads(lines[0]), key, source, commit["run"])
        return {r["run"]: r for r in map(json.loads, lines[1:])}

    def sums(self, source, run, digest):
        key = "sources/%s/runs/%s/SHA256SUMS" % (source, run)
        lines = self.read(key, digest).decode().splitlines()
        place = "# lifeboat format=1 repository=%s source=%s run=%s" % (self.id, source, run)
        if not lines or lines[0] != place:
            raise damaged("%s belongs elsewhere" % key)
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines[1:])}


class Point:
    """A point with everything that is needed to read it."""

    def __init__(self, repository, source, commit, identity=None):
        self.repository, self.source, self.commit = repository, source, commit
        self.run = commit["run"]
        self.refs = repository.refs(source, commit)
        self.sums = {self.run: repository.sums(source, self.run, commit["sums"])}
        for reference in self.refs.values():
            self.sums[reference["run"]] = repository.sums(source, reference["run"], reference["sums"])
        for name in ("manifest", "refs"):
            object_name = "manifest.age" if name == "manifest" else "refs"
            if self.sums[self.run].get(object_name) != commit[name]:
                raise damaged("the commit and SHA256SUMS of %s disagree about %s" % (self.run, object_name))
        self.identities = {}
        self.packs = collections.OrderedDict()
        if identity is not None:
            wrap = base64.b64decode(commit["generation"]["wrap"])
            self.identities[self.run] = self.unwrap(commit["generation"]["id"], identity, [wrap])
            opened = {commit["generation"]["id"]: self.identities[self.run]}
            for reference in self.refs.values():
                generation = reference["generation"]
                if generation not in opened:
                    opened[generation] = self.unwrap(generation, identity, [])
                self.identities[reference["run"]] = opened[generation]

    def unwrap(self, generation, identity, wraps):
        prefix = "keys/%s" % generation
        wraps = wraps + [self.repository.read("%s/%s" % (prefix, n)) for n in self.repository.names(prefix)]
        why = "there is no wrap"
        for wrap in wraps:
            code, text, why = run(["age", "-d", "-i", identity], wrap)
            if code == 0 and text.splitlines()[0].decode().endswith("generation=" + generation):
                return text
        raise Problem(12, "no identity opens generation %s: %s" % (generation, why))

    def open(self, run_id, name, digest=None):
        """Decrypts an object of a run and compares its head."""
        wanted = self.sums[run_id].get(name) if digest is None else digest
        if wanted is None:
            raise damaged("%s is not in SHA256SUMS of run %s" % (name, run_id))
        key = "sources/%s/runs/%s/%s" % (self.source, run_id, name)
        sealed = self.repository.read(key, wanted)
        code, plain, why = run(["age"], sealed, self.identities[run_id])
        if code != 0:
            raise damaged("%s can not be decrypted: %s" % (key, why))
        magic, length = struct.unpack_from("<II", plain)
        head = json.loads(plain[8 : 8 + length]) if magic == HEAD_MAGIC else {}
        self.repository.check_place(head, key, self.source, run_id)
        if head.get("object") != name:
            raise damaged("%s belongs elsewhere: it says it is %s" % (key, head.get("object")))
        return plain

    def content_of(self, run_id, number):
        """The decoded content of a pack, and where each frame's content begins: position -> (offset, length)."""
        key = (run_id, number)
        if key in self.packs:
            self.packs.move_to_end(key)
            return self.packs[key]
        plain = self.open(run_id, "%d.age" % number)
        places, offset = {}, 0
        for at, content in frames(plain):
            places[at] = (offset, content)
            offset += content
        code, content, why = run(["zstd", "-d", "-q", "-c"], plain)
        if code != 0 or len(content) != offset:
            raise damaged("pack %d of run %s does not decode: %s" % (number, run_id, why))
        self.packs[key] = (content, places)
        while len(self.packs) > 4:
            self.packs.popitem(last=False)
        return self.packs[key]

    def manifests(self):
        """Heads and lines of the chain, newest first."""
        chain, run_id, digest = [], self.run, self.commit["manifest"]
        while run_id is not None:
            if len(chain) >= self.commit["manifest_depth"]:
                raise damaged("the chain of manifests is longer than the commit says")
            if run_id != self.run and not self.refs.get(run_id, {}).get("manifest"):
                raise damaged("the manifest of %s is not among the references" % run_id)
            plain = self.open(run_id, "manifest.age", digest)
            code, text, why = run(["zstd", "-d", "-q", "-c"], plain)
            if code != 0 or not text.endswith(b"\n"):
                raise damaged("the manifest of %s does not decode: %s" % (run_id, why))
            first, _, rest = text.partition(b"\n")
            head = json.loads(first)
            self.repository.check_place(head, "the manifest of " + run_id, self.source, run_id)
            chain.append((head, rest))
            run_id, digest = head["parent"], head["parent_manifest"]
        newest = chain[0][0]
        for name in ("at", "partial", "kind", "facts"):
            if newest[name] != self.commit[name]:
                raise damaged("the commit and the manifest disagree about %s" % name)
        if len(chain) != self.commit["manifest_depth"]:
            raise damaged("the chain of manifests is shorter than the commit says")
        return chain

    def lines(self):
        """The merged lines: the newest of each (unit, at); stretches at or beyond a unit's size are dropped."""

        def numbered(age, head, text):
            table = {number: run_id for number, run_id, _ in head["runs"]}
            for line in text.splitlines():
                line = json.loads(line)
                yield ((line["unit"].encode(), line.get("at", -1)), age, line, table)

        streams = [numbered(age, head, text) for age, (head, text) in enumerate(self.manifests())]
        last, unit = None, None
        for key, _, line, table in heapq.merge(*streams, key=lambda item: (item[0], item[1])):
            if key == last:
                continue
            last = key
            if line.get("gone"):
                unit = None
            elif "at" not in line:
                unit = line
                yield line, table
            elif unit is not None and unit["unit"] == line["unit"] and unit["size"] > STRETCH and line["at"] < unit["size"]:
                yield line, table

    def bytes_of(self, line, table):
        parts = []
        for number, pack, frame_at, _, offset, length in line["extents"]:
            content, places = self.content_of(table[number], pack)
            if frame_at not in places or offset + length > places[frame_at][1]:
                raise damaged("a frame of %s is not where the manifest says" % line["unit"])
            start = places[frame_at][0] + offset
            parts.append(content[start : start + length])
        data = b"".join(parts)
        if len(data) != line.get("length", line.get("size")):
            raise damaged("the extents of %s do not fill it" % line["unit"])
        return data


def frames(plain):
    """Positions of zstd frames and the sizes of their content (RFC 8878, section 3.1)."""
    at = 0
    while at < len(plain):
        (magic,) = struct.unpack_from("<I", plain, at)
        if magic & 0xFFFFFFF0 == 0x184D2A50:
            at += 8 + struct.unpack_from("<I", plain, at + 4)[0]
            continue
        if magic != 0xFD2FB528:
            raise damaged("a pack is no run of zstd frames")
        descriptor = plain[at + 4]
        single, checksum, kind = descriptor >> 5 & 1, descriptor >> 2 & 1, descriptor >> 6
        place = at + 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
        width = (1 if single else 0, 2, 4, 8)[kind]
        size = int.from_bytes(plain[place : place + width], "little") + (256 if width == 2 else 0)
        place += width
        while True:
            header = int.from_bytes(plain[place : place + 3], "little")
            last, block, length = header & 1, header >> 1 & 3, header >> 3
            place += 3 + (1 if block == 1 else length)
            if last:
                break
        yield at, size
        at = place + 4 * checksum


def unit_path(name):
    """The bytes of a unit's name, refused if they lead out of the target."""
    raw, text, i = bytearray(), name.encode(), 0
    while i < len(text):
        if text[i : i + 1] == b"%":
            raw += bytes.fromhex(text[i + 1 : i + 3].decode())
            i += 3
        else:
            raw.append(text[i])
            i += 1
    parts = bytes(raw).split(b"/")
    if b"\0" in raw or any(part in (b"", b".", b"..") for part in parts):
        raise damaged("the name %r leads out of the target" % name)
    return parts


def blake3_of(data):
    """BLAKE3 by the program b3sum, if it is there; else None (zstd's checksums and SHA-256 are compared anyway)."""
    try:
        done = subprocess.run(["b3sum", "--no-names"], input=data, stdout=subprocess.PIPE)
    except FileNotFoundError:
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def restore(point, target):
    root = os.fsencode(target)
    if os.path.lexists(root) and (not os.path.isdir(root) or os.path.islink(root) or [n for n in os.listdir(root) if n != MARKER.encode()]):
        raise Problem(2, "%s is there and not empty; give a new directory" % target)
    os.makedirs(root, mode=0o700, exist_ok=True)
    marker = os.path.join(root, MARKER.encode())
    with open(marker, "w") as file:
        json.dump({"source": point.source, "run": point.run}, file)
    skip_facts = point.commit["kind"] == "pocketbase"
    done, total, current = 0, 0, None

    def close():
        if current is None:
            return
        file, line, written = current
        file.truncate(line["size"])
        file.flush()
        os.fsync(file.fileno())
        attributes = line.get("attributes", {})
        os.fchmod(file.fileno(), attributes.get("mode") or 0o600)
        file.close()
        if written != line["size"]:
            raise damaged("stretches of %s are missing" % line["unit"])
        if attributes.get("modified_ms") is not None:
            nanoseconds = attributes["modified_ms"] * 1000000
            os.utime(file.name, ns=(nanoseconds, nanoseconds))

    for line, table in point.lines():
        if skip_facts and line["unit"] == "facts.json":
            continue
        if "at" not in line:
            close()
            parts = unit_path(line["unit"])
            path = root
            for part in parts[:-1]:
                path = os.path.join(path, part)
                if os.path.islink(path):
                    raise damaged("%r is a symbolic link" % path)
                os.makedirs(path, mode=0o700, exist_ok=True)
            path = os.path.join(path, parts[-1])
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            current = [NamedFile(os.fdopen(descriptor, "wb"), path), line, 0]
            total += 1
        if "extents" in line:
            data = point.bytes_of(line, table)
            found = blake3_of(data)
            if found is not None and found != line["blake3"]:
                raise damaged("the content of %s is not what was backed up" % line["unit"])
            current[0].seek(line.get("at", 0))
            current[0].write(data)
            current[2] += len(data)
            done += len(data)
    close()
    os.sync()
    os.remove(marker)
    print("restored %d files, %d bytes: %s as of %s" % (total, done, point.source, point.commit["at"]))


class NamedFile:
    """A file opened by descriptor that knows its path."""

    def __init__(self, file, path):
        self.file, self.name = file, path

    def __getattr__(self, name):
        return getattr(self.file, name)


def instant(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def moment(text):
    """The --at of the command line: `latest`, or RFC 3339."""
    if text == "latest":
        return text
    form = r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"
    try:
        if re.fullmatch(form, text, re.ASCII):
            return instant(short(text.upper()))
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        "%r is neither `latest` nor RFC 3339 with a zone, such as 2026-11-21T14:03:00Z" % text
    )


def short(text):
    """RFC 3339 with any number of fractional digits, as datetime takes it."""
    head, dot, rest = text.partition(".")
    if not dot:
        return text
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return "%s.%s%s" % (head, (digits + "000000")[:6], rest[len(digits) :])


def choose(repository, source, arguments):
    commits = []
    tombstones = {n[:-5] for n in repository.names("sources/%s/tombstones" % source)}
    for run_id in repository.points(source):
        try:
            commit = repository.commit(source, run_id)
        except Problem as problem:
            if arguments.run == run_id:
                raise
            print("warning: %s" % problem, file=sys.stderr)
            continue
        if not commit.get("partial"):
            commits.append(commit)
    if arguments.run:
        commits = [c for c in commits if c["run"] == arguments.run]
        if not commits:
            raise Problem(2, "%s has no recovery point %s; see: restore.py REPOSITORY list" % (source, arguments.run))
    else:
        commits = [c for c in commits if c["run"] not in tombstones]
        if arguments.at != "latest":
            commits = [c for c in commits if instant(short(c["at"])) <= arguments.at]
    if not commits:
        raise Problem(20, "there is no recovery point of %s at that time; see: restore.py REPOSITORY list" % source)
    return max(commits, key=lambda c: (instant(short(c["at"])), c["run"]))


def needed_keys(repository, source, commit):
    run_id = commit["run"]
    prefix = "sources/%s/runs/" % source
    keys = ["lifeboat.json", "sources/%s/points/%s.json" % (source, run_id)]
    keys += [prefix + run_id + "/" + n for n in list(repository.sums(source, run_id, commit["sums"])) + ["SHA256SUMS"]]
    generations = {commit["generation"]["id"]}
    for reference in repository.refs(source, commit).values():
        generations.add(reference["generation"])
        names = ["%d.age" % n for first, last in reference["packs"] for n in range(first, last + 1)]
        names += ["SHA256SUMS"] + (["manifest.age"] if reference["manifest"] else [])
        keys += [prefix + reference["run"] + "/" + n for n in names]
    for generation in sorted(generations):
        keys += ["keys/%s/%s" % (generation, n) for n in repository.names("keys/" + generation)]
    return keys


def verify(repository, sources):
    bad, checked = [], set()

    def check(key, digest):
        if key not in checked:
            checked.add(key)
            try:
                repository.read(key, digest)
            except Problem as problem:
                bad.append(str(problem))

    for source in sources:
        prefix = "sources/%s/runs/" % source
        for run_id in repository.points(source):
            try:
                commit = repository.commit(source, run_id)
                for name, digest in repository.sums(source, run_id, commit["sums"]).items():
                    check(prefix + run_id + "/" + name, digest)
                for reference in repository.refs(source, commit).values():
                    sums = repository.sums(source, reference["run"], reference["sums"])
                    names = ["%d.age" % n for a, b in reference["packs"] for n in range(a, b + 1)]
                    for name in names + (["manifest.age"] if reference["manifest"] else []):
                        check(prefix + reference["run"] + "/" + name, sums.get(name, "no digest"))
            except Problem as problem:
                bad.append(str(problem))
    print("%d objects read, %d damaged or missing" % (len(checked), len(bad)))
    for text in bad:
        print("  " + text)
    return 21 if bad else 0


def show(repository, sources):
    for source in sources:
        tombstones = {n[:-5] for n in repository.names("sources/%s/tombstones" % source)}
        for run_id in repository.points(source):
            try:
                commit = repository.commit(source, run_id)
            except Problem as problem:
                print("%-20s %s  %s" % (source, run_id, problem))
                continue
            marks = [m for m, on in (("partial", commit.get("partial")), ("expired", run_id in tombstones)) if on]
            print("%-20s %s  %s  %s  %d bytes %s" % (source, run_id, commit["at"], commit["kind"], commit["bytes"]["content"], " ".join(marks)))


def readable(identity):
    """Refuses an identity file that is not there, before age blames the identity."""
    try:
        with open(identity, "rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        raise Problem(2, "can not read the identity %s: %s" % (identity, getattr(error, "strerror", None) or error))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="the directory that holds lifeboat.json")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in (("list", "show the recovery points"), ("verify", "compare every object with its SHA-256")):
        commands.add_parser(name, help=what).add_argument("source", nargs="?", help="only this one")
    for name, what in (("restore", "restore a recovery point"), ("needs", "name the objects of a recovery point")):
        command = commands.add_parser(name, help=what)
        command.add_argument("source")
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument(
            "--at",
            type=moment,
            metavar="TIME",
            help="latest, or RFC 3339 with a zone (2026-11-21T14:03:00Z): the newest recovery point at or before it",
        )
        which.add_argument("--run", help="this recovery point")
        if name == "restore":
            command.add_argument("--identity", required=True, metavar="FILE", help="an age identity file")
            command.add_argument("--to", required=True, metavar="DIRECTORY", help="a new or empty directory")
    arguments = parser.parse_args()
    if arguments.command == "restore":
        readable(arguments.identity)
    repository = Repository(arguments.repository)
    sources = repository.sources()
    if getattr(arguments, "source", None):
        if arguments.source not in sources:
            raise Problem(2, "there is no source %s; there is: %s" % (arguments.source, ", ".join(sources)))
        sources = [arguments.source]
    if arguments.command == "list":
        show(repository, sources)
    elif arguments.command == "verify":
        return verify(repository, sources)
    else:
        commit = choose(repository, arguments.source, arguments)
        if arguments.command == "needs":
            print("\n".join(needed_keys(repository, arguments.source, commit)))
        else:
            restore(Point(repository, arguments.source, commit, arguments.identity), arguments.to)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Problem as problem:
        print("restore.py: %s" % problem, file=sys.stderr)
        sys.exit(problem.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output wants no more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        print("restore.py: %s" % error, file=sys.stderr)
        sys.exit(1)
    except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        print("restore.py: an object of the repository is damaged: %s: %s" % (type(error).__name__, error), file=sys.stderr)
        sys.exit(21)
