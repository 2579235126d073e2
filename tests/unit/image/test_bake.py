from __future__ import annotations

import re

from comfypod.image.bake import bake, compose, image_tags, platforms
from comfypod.image.labels import lock_digest
from comfypod.image.recipe import VARIANTS, make_recipe
from comfypod.lock.schema import Lock
from comfypod.manifest.profiles import load_profiles

TABLE = load_profiles()


def test_every_image_is_a_target_whose_tag_says_that_it_was_not_tried(lock: Lock) -> None:
    recipes = [make_recipe(lock, profile) for profile in TABLE.values()]
    text = bake(recipes)
    blocks = dict(re.findall(r'^target "([^"]+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL))
    assert blocks.keys() == {f"{name}-{variant}" for name in TABLE for variant in VARIANTS}
    for recipe in recipes:
        for variant in VARIANTS:
            block = blocks[f"{recipe.profile.name}-{variant}"]
            assert f'"Dockerfiles/Dockerfile.{recipe.profile.name}"' in block
            assert f'target     = "{variant}"' in block
            assert f'"${{REPOSITORY}}:{recipe.profile.name}-{variant}-untried"' in block
            assert not any(f':{tag}"' in block for tag in image_tags(recipe, variant))
            assert all(f'"{platform}"' in block for platform in platforms(recipe))
    group = re.search(r"targets = \[(.*)\]", text)
    assert group is not None
    assert set(re.findall(r'"([^"]+)"', group[1])) == blocks.keys()


def test_one_tag_names_all_that_the_image_is_made_of_and_the_other_is_short(lock: Lock) -> None:
    recipe = make_recipe(lock, TABLE["4090"])
    short = lock_digest(lock)[:12]
    assert image_tags(recipe, "full") == (f"{lock.comfyui.version}-4090-full-{short}", "4090")
    assert image_tags(recipe, "slim") == (f"{lock.comfyui.version}-4090-slim-{short}", "4090-slim")


def test_g1_compose_publishes_to_this_machine_only(lock: Lock) -> None:
    text = compose([make_recipe(lock, profile) for profile in TABLE.values()])
    ports = re.findall(r'"([^"]*:\d+:\d+)"', text)
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert text.count("gpus: all") == sum(profile.needs_gpu for profile in TABLE.values())
