"""Commands on releases, finished runs and files of anyone."""

from __future__ import annotations

import argparse

from pocketvlm.environment import Environment


def pull(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm pull`."""
    from pocketvlm.artifacts.open import open_store
    from pocketvlm.artifacts.pull import pull

    types = options.types.split(",") if options.types else None
    release = pull(open_store(environment, read_only=True), options.name, options.version, options.to, types)
    print(f"{release.name} {release.version} is in {options.to}")
    return 0


def verify(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm verify`."""
    from pocketvlm.llamacpp.toolchain import find_toolchain
    from pocketvlm.verify import verify

    print(verify(options.folder, find_toolchain(environment), environment.thread_count()))
    return 0


def predict(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm predict`."""
    from pocketvlm.predict.command import predict

    return predict(options.release, options.images, environment, version=options.version, type=options.type,
                   format=options.format, output=options.output)  # fmt: skip


def demo(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm demo`."""
    from pocketvlm.demo.serve import demo

    return demo(options.release, environment, version=options.version, type=options.type, host=options.host, port=options.port,
                base=not options.no_base, open_page=options.open)  # fmt: skip


def compare(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm compare`."""
    from pocketvlm.cli.runs import written
    from pocketvlm.compare.page import write_comparison

    page, text = write_comparison(options.runs, environment, options.to)
    print(text)
    return written("comparison", page, options)


def publish(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm publish`."""
    from pocketvlm.artifacts.open import open_store
    from pocketvlm.publish.publish import publish

    print(publish(
        open_store(environment, read_only=True), environment, options.name, options.to, version=options.version,
        parts=options.parts.split(","), private=options.private, licence=options.licence,
        non_commercial=options.non_commercial, yes=options.yes,
    ))  # fmt: skip
    return 0


def doctor(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm doctor`; needs neither store nor llama.cpp."""
    from pocketvlm.doctor.examine import examine, render, render_json

    del environment
    found = examine(options.paths, checkpoint=options.checkpoint, base=options.base)
    print(render_json(found) if options.json else render(found))
    return found.exit_code
