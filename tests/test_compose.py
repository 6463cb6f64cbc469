"""From words on the command line to a checked plan."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from eucaim_fl.compose import compose, resolve, sweep
from eucaim_fl.errors import KeyFileError, PermitError, PrivacyError, RecipeError, SiteFileError
from eucaim_fl.federation.home import Settings, create
from eucaim_fl.permits import Permit, issue
from eucaim_fl.signing import PrivateKey, fingerprint, new_node_key, verify

pytestmark = pytest.mark.integration

NOW = datetime.now(UTC)


class TestCompose:
    def test_overrides_win_over_the_recipe_and_the_recipe_over_the_defaults(self):
        config = compose(["experiment=demo", "rounds=3"])
        assert (config.name, config.rounds) == ("demo", 3)

    def test_a_recipe_of_the_working_folder_is_found(self, tmp_path, monkeypatch):
        (tmp_path / "experiments").mkdir()
        (tmp_path / "experiments" / "own.yaml").write_text("name: own\nsites: [a]\nrounds: 2\n")
        monkeypatch.chdir(tmp_path)
        assert compose(["experiment=own"]).rounds == 2

    def test_a_group_of_the_working_folder_is_found(self, tmp_path, monkeypatch):
        (tmp_path / "configs" / "method").mkdir(parents=True)
        values = compose(["experiment=demo"]).method.model_dump(mode="json")
        values["server_optimizer"]["lr"] = 0.5
        (tmp_path / "configs" / "method" / "slow.yaml").write_text(yaml.safe_dump(values))
        monkeypatch.chdir(tmp_path)
        assert compose(["experiment=demo", "method=slow"]).method.server_optimizer.lr == 0.5

    @pytest.mark.parametrize("text", ["{", "!!python/object:os.system {}", "- 1\n"])
    def test_a_recipe_that_is_no_plain_yaml_is_an_error(self, tmp_path, monkeypatch, text):
        (tmp_path / "experiments").mkdir()
        (tmp_path / "experiments" / "bad.yaml").write_text(text)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RecipeError, match="bad"):
            compose(["experiment=bad"])

    def test_a_sweep_is_not_one_recipe(self):
        with pytest.raises(RecipeError, match="several runs"):
            compose(["--multirun", "experiment=demo", "seed=0,1"])

    def test_what_the_job_raises_comes_out_and_ends_the_sweep(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        seen = []

        def job(config):
            seen.append(config.seed)
            raise SiteFileError("no")

        with pytest.raises(SiteFileError, match="no"):
            sweep(["--multirun", "experiment=demo", "seed=0,1,2"], job)
        assert seen == [0]

    def test_a_key_that_only_another_choice_has_is_no_slip_of_the_pen(self):
        with pytest.raises(RecipeError, match="no meaning with the chosen 'privacy'") as caught:
            compose(["experiment=demo", "privacy=none", "privacy.secure=false"])
        assert caught.value.fix == "Leave it out, or choose another 'privacy'."

    def test_nobody_is_led_to_less_protection_by_a_guess(self):
        with pytest.raises(RecipeError, match="no privacy called 'nonsense'") as caught:
            compose(["experiment=demo", "privacy=nonsense"])
        assert caught.value.fix == "Known: central_dp, none, patient_dp, update_dp."

    def test_an_unknown_key_is_refused_by_sweep_too(self):
        with pytest.raises(RecipeError, match="metod"):
            sweep(["experiment=demo", "metod=x"], print)


class TestResolve:
    def test_the_plan_names_sites_in_order_and_arguments_in_full(self, hospital, recipe):
        resolved = resolve(recipe([hospital("b"), hospital("a")]))
        assert resolved.plan.sites == ("a", "b")
        assert resolved.plan.model.args["kernel_size"] == 3

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"model": {"name": "unett"}}, "unett"),
            ({"model": {"args": {"channels": [4, 8], "strides": [2], "depth": 3}}}, "depth"),
            ({"model": {"args": {"channels": "many", "strides": [2]}}}, "channels"),
            ({"data": {"size_voxels": [15, 15, None]}}, "15"),
            ({"data": {"size_voxels": [None, 16, None]}}, "no fixed size"),
            ({"training": {"patch_voxels": [16]}}, "patch_voxels"),
            ({"method": {"rule": {"name": "krumm"}}}, "krum"),
            ({"method": {"rule": {"name": "krum"}}}, "quorum|sites"),
            ({"method": {"server_optimizer": {"name": "addam"}}}, "adam"),
        ],
    )
    def test_what_can_not_work_is_refused_before_anything_runs(self, hospital, recipe, change, said):
        with pytest.raises(RecipeError, match=said):
            resolve(recipe([hospital("a")], **change))

    def test_two_sites_of_one_name_are_refused(self, hospital, recipe, tmp_path):
        first = hospital("a")
        second = tmp_path / "again.yaml"
        second.write_text(first.read_text())
        with pytest.raises(RecipeError, match="Two site files"):
            resolve(recipe([first, second]))

    def test_a_site_file_that_is_missing_is_an_error(self, recipe, tmp_path):
        with pytest.raises(SiteFileError, match="does not exist"):
            resolve(recipe([tmp_path / "none.yaml"]))


NOISE = {"delta": 1e-5, "clipping_norm": 1.0}


class TestPrivacy:
    def test_the_plan_has_the_noise_that_the_target_needs_and_the_recipe_keeps_the_target(self, hospital, recipe):
        privacy = {"mechanism": "update_dp", "target_epsilon": 8.0, **NOISE}
        resolved = resolve(recipe([hospital("a")], privacy=privacy))
        assert resolved.config.privacy.target_epsilon == 8.0
        assert resolved.plan.privacy.target_epsilon is None
        assert resolved.plan.privacy.noise_multiplier > 1.0

    def test_a_target_that_no_noise_reaches_is_refused(self, hospital, recipe):
        privacy = {"mechanism": "central_dp", "target_epsilon": 1e-5, **NOISE, "delta": 1e-12}
        with pytest.raises(PrivacyError, match="No noise brings"):
            resolve(recipe([hospital("a")], privacy=privacy))

    def test_a_network_that_mixes_patients_is_refused_for_patient_dp_only(self, hospital, recipe):
        model = {"name": "unet", "args": {"channels": [4, 8], "strides": [2], "norm": "batch"}}
        noise = {"noise_multiplier": 1.0, **NOISE}
        with pytest.raises(RecipeError, match="batch normalisation mixes the patients"):
            resolve(
                recipe([hospital("a")], model=model, privacy={"mechanism": "patient_dp", "sampling_rate": 0.1, **noise})
            )
        resolve(recipe([hospital("b")], model=model, privacy={"mechanism": "update_dp", **noise}))


class TestPermits:
    """A recipe names files; the plan carries the permit itself, and beside it goes the holder's signature."""

    @pytest.fixture
    def files(self, tmp_path):
        holder, now = PrivateKey.create(), datetime.now(UTC)
        values = {
            "id": "P-1",
            "issuer": "hdab",
            "holder": "university",
            "holder_key": holder.public,
            "purposes": ("scientific_research",),
            "datasets": ("ds-1",),
            "valid_from": now,
            "valid_until": now + timedelta(days=1),
        }
        (tmp_path / "permit.json").write_text(json.dumps(issue(Permit.model_validate(values), PrivateKey.create())))
        holder.save(tmp_path / "holder.pem")
        return {"file": tmp_path / "permit.json", "holder_key": tmp_path / "holder.pem"}

    def test_it_goes_into_the_plan_which_its_holder_signs(self, hospital, recipe, files):
        resolved = resolve(recipe([hospital("a")], permit=files))
        assert resolved.plan.permit == json.loads(files["file"].read_text())
        public = PrivateKey.load(files["holder_key"]).public
        assert verify(public, "plan", resolved.plan.sha256(), resolved.holder_signature)
        assert str(files["file"]) not in resolved.plan.canonical_json()

    def test_without_one_nothing_is_signed(self, hospital, recipe):
        resolved = resolve(recipe([hospital("a")]))
        assert (resolved.plan.permit, resolved.holder_signature) == (None, "")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda path: path.unlink(), "can't be read"),
            (lambda path: path.write_text("{"), "no JSON"),
            (lambda path: path.write_text("{}"), "not a signed permit"),
            (lambda path: path.write_text(path.read_text().replace("P-1", "P-2")), "altered"),
        ],
    )
    def test_one_that_can_not_be_used_is_an_error(self, hospital, recipe, files, change, said):
        change(files["file"])
        with pytest.raises(PermitError, match=said):
            resolve(recipe([hospital("a")], permit=files))

    def test_so_is_a_key_that_can_not(self, hospital, recipe, files, tmp_path):
        new_node_key(tmp_path / "node.pem")
        site = hospital("a")
        for path, said in (("none.pem", "can't be read"), ("node.pem", "holds no Ed25519 key")):
            with pytest.raises(KeyFileError, match=said):
                resolve(recipe([site], permit={**files, "holder_key": tmp_path / path}))

    def test_nor_one_whose_plans_nobody_signs(self, hospital, recipe, files):
        shown = fingerprint(PrivateKey.load(files["holder_key"]).public)
        with pytest.raises(PermitError, match=rf"must be signed by its holder's key {shown}\.") as told:
            resolve(recipe([hospital("a")], permit={"file": files["file"]}))
        assert "That key" not in told.value.message
        assert "permit.holder_key=FILE" in told.value.fix

    def test_nor_one_with_a_key_that_is_not_its_holders(self, hospital, recipe, files, tmp_path):
        other = PrivateKey.create()
        other.save(tmp_path / "other.pem")
        with pytest.raises(PermitError, match=rf"That key is {fingerprint(other.public)}\."):
            resolve(recipe([hospital("a")], permit={**files, "holder_key": tmp_path / "other.pem"}))


class TestHospitals:
    """With the engine `superlink` the sites are those that the federation has admitted."""

    @pytest.fixture
    def federation(self, tmp_path):
        (tmp_path / "home" / "sites").mkdir(parents=True)
        for name in "cab":
            (tmp_path / "home" / "sites" / f"{name}.json").write_text("{}")
        return {"engine": "superlink", "home": tmp_path / "home", "workers": None}

    def test_all_of_them_are_asked_and_no_site_file_is_read(self, recipe, federation):
        resolved = resolve(recipe(["none.yaml"], federation=federation))
        assert resolved.plan.sites == ("a", "b", "c")
        assert not resolved.site_files

    def test_some_of_them_may_be_named(self, recipe, federation):
        resolved = resolve(recipe(["none.yaml"], federation={**federation, "sites": ["c", "a"]}))
        assert resolved.plan.sites == ("a", "c")

    def test_one_that_is_not_admitted_is_an_error(self, recipe, federation):
        with pytest.raises(RecipeError, match="no site called 'd'"):
            resolve(recipe(["none.yaml"], federation={**federation, "sites": ["a", "d"]}))

    def test_so_is_a_quorum_of_more_than_there_are(self, recipe, federation):
        with pytest.raises(RecipeError, match="quorum is 4, but 3 sites are admitted"):
            resolve(recipe(["none.yaml"], federation={**federation, "quorum": 4}))

    def test_the_choice_of_a_federation_is_its_name(self, tmp_path, monkeypatch):
        monkeypatch.setenv("EUCAIM_FL_FEDERATIONS", str(tmp_path / "federations"))
        folder = create(Settings(name="liver", host="localhost", port=443, made_at=NOW), NOW).folder
        config = compose(["experiment=demo", "federation=liver"])
        assert (config.federation.engine, config.federation.home) == ("superlink", folder)
        with pytest.raises(RecipeError, match="no federation called 'livver'"):
            compose(["experiment=demo", "federation=livver"])
