"""Make broken and malicious files from good ones; a seed always makes the same."""

import copy
import hashlib
import io
import json
import math
import re
import zipfile

import h5py
import numpy as np

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MODEL, SETTINGS, ABOUT = "model.keras", "early_exit.json", "about.npy"
DIGITS = (
    64  # Of the digest at the end of an early-exit file, or on top of a checkpoint.
)

_LISTS = np.dtype([("a", h5py.vlen_dtype(np.dtype("u1")))])


def symbol(module, name, /, **fields):
    """Return the config of a class, as Keras writes it."""
    return {"module": module, "class_name": name, "config": fields}


def function(module, name):
    """Return the config of a function, as Keras writes it."""
    found = {"module": module, "class_name": "function", "config": name}
    return {**found, "registered_name": name}


def hostile(outside):
    """Return values that reach for code, other modules and files.

    Args:
        outside: A folder that reading must not touch.
    """
    code = {"class_name": "__lambda__", "config": {"value": ["4wEAAAA=", None, None]}}
    path = f"{outside}/secret.txt"
    address = "http://127.0.0.1:9/secret"
    return [
        code,
        symbol("keras.layers", "Lambda", function=code, name="evil"),
        symbol("keras.layers", "TFSMLayer", filepath=str(outside)),
        symbol("keras.layers", "StringLookup", vocabulary=path, name="words"),
        symbol("keras.layers", "TextVectorization", vocabulary=address),
        symbol("keras.layers", "TorchModuleWrapper", module="gASVAAA="),
        symbol("keras.utils", "get_file", origin=address, fname=path),
        symbol("keras.callbacks", "CSVLogger", filename=f"{outside}/made.csv"),
        symbol("keras.metrics", "AUC", num_thresholds=10**8),
        [symbol("keras.metrics", "AUC", num_thresholds=10**5)] * 500,
        [symbol("keras.metrics", "F1Score")] * 5000,
        ["AUC"] * 5000,
        [function("keras.metrics", "mean_squared_error")] * 5000,
        symbol("keras.src.ops.numpy", "Split", indices_or_sections=3 * 10**6),
        symbol("keras.layers", "SpectralNormalization", power_iterations=10**9),
        symbol("keras.optimizers", "Muon", exclude_layers=["(a+)+$"]),
        symbol("keras.dtype_policies", "DTypePolicyMap", policy_map={"(a+)+$": None}),
        symbol("keras.layers", "Dense", units=10**9, name="huge"),
        symbol("keras.src.backend.torch", "Variable"),
        symbol("keras_hub.models", "Backbone"),
        symbol("antigravity", "fly"),
        function("os", "system"),
        function("builtins", "exec"),
        function("subprocess", "Popen"),
        function("keras.config", "enable_unsafe_deserialization"),
        function("keras.utils", "get_file"),
        function("keras.saving", "load_model"),
        {"class_name": "__typespec__", "module": "os", "spec_name": "system"},
        {"class_name": "Dense", "config": {"units": 4}},
        path,
        "../../../../etc/passwd",
        address,
    ]


def _plain_value(random):
    whole = [0, 1, -1, 7, 1000, 10**6, 10**9, 2**31 - 1, 2**31, 2**63, 2**64, 10**30]
    others = [math.nan, math.inf, 1e308, -0.5, True, None, "", "a" * 9999, "\0", "é/\\"]
    return random.choice([random.choice(whole), *others, [], {}, [None], {"": 0}])


def _places(value, found=None):
    """Return (container, key) of everything in a JSON document."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        found.append((value, key))
        if isinstance(each, (dict, list)):
            _places(each, found)
    return found


def mutate_json(text, random, outside):
    """Return the text of a JSON document with one to three changes."""
    document = json.loads(text)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places = _places(document)
        if places:
            _change(*random.choice(places), places, random, outside)
    text = json.dumps(document)
    if random.random() < 0.03:
        depth = random.choice([300, 5000, 100000])
        opened, closed = random.choice([("[", "]"), ('{"a":', "}")])
        text = text.replace("null", opened * depth + "1" + closed * depth, 1)
    if random.random() < 0.05:
        return mutate_bytes(text.encode(), random)
    return text.encode()


def _change(container, key, places, random, outside):
    kind = random.randrange(9)
    value = container[key]
    if kind == 0:
        del container[key]
    elif kind in (1, 2):
        container[key] = _plain_value(random)
    elif kind in (3, 4):
        container[key] = copy.deepcopy(random.choice(hostile(outside)))
    elif kind == 5:
        other, place = random.choice(places)
        try:
            container[key] = copy.deepcopy(other[place])
        except (KeyError, IndexError):
            container[key] = None
    elif kind == 6 and isinstance(value, int):
        container[key] = value * 10 ** random.randrange(1, 12)
    elif kind == 6 and isinstance(value, list):
        container[key] = value * random.choice([0, 2, 100])
    elif kind == 7 and isinstance(container, dict):
        container[random.choice([key + "_", "module", "class_name", ""])] = value
    elif isinstance(value, str):
        names = [
            "Lambda",
            "function",
            "__lambda__",
            "Dense",
            "LSTM",
            "Conv3D",
            "float16",
        ]
        container[key] = random.choice(names)
    else:
        container[key] = [value] if random.random() < 0.5 else {"config": value}


def mutate_bytes(content, random):
    """Return bytes with flips, cuts, copies or noise somewhere."""
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8])):
        if not content:
            break
        place, kind = random.randrange(len(content)), random.randrange(6)
        length = min(random.choice([1, 4, 8, 64, 512]), len(content) - place)
        if kind == 0:
            content[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = content[place : place + length]
        elif kind == 3:
            content[place : place + length] = random.randbytes(length)
        elif kind == 4:
            content[place : place + length] = random.choice([b"\0", b"\xff"]) * length
        else:
            del content[place:]
    return bytes(content)


def mutate_weights(content, random, outside):
    """Return an HDF5 file with one change of its structure, or of its bytes."""
    if random.random() < 0.4:
        return mutate_bytes(content, random)
    if random.random() < 0.15:
        return overlap(content, random.choice([0, 0, 1, 4, 2**40]))
    if random.random() < 0.1:
        return references(content, attribute=random.random() < 0.5)
    store = io.BytesIO(content)
    with h5py.File(store, "a") as file:
        names = []
        file.visititems(
            lambda name, each: names.append(name) if hasattr(each, "shape") else None
        )
        name = random.choice(names)
        array = np.array(file[name])
        del file[name]
        _put(file, name, array, random, outside)
    return store.getvalue()


def overlap(content, by=0):
    """Return an HDF5 file whose second array lies where the first does, or past it.

    Args:
        content: Bytes of the file.
        by: Number of bytes from the beginning of the first array.
    """
    places = []
    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(
            lambda name, each: (
                places.append(each.id.get_offset()) if hasattr(each, "shape") else None
            )
        )
    one, two = sorted(place for place in places if place)[:2]
    # Eight bytes in an array's header say where its bytes are.
    return content.replace(two.to_bytes(8, "little"), (one + by).to_bytes(8, "little"))


def references(content, *, attribute=False):
    """Return an HDF5 file with thousands of references to one list of a megabyte.

    Args:
        content: Bytes of the file.
        attribute: Whether they are an attribute of the largest array, not its content.
    """
    store, length = io.BytesIO(content), 10**6 + 3
    with h5py.File(store, "a") as file:
        arrays = []
        file.visititems(
            lambda name, each: arrays.append(each) if hasattr(each, "shape") else None
        )
        largest = max(arrays, key=lambda each: each.size)
        name, shape = largest.name, (2000,) if attribute else largest.shape
        dtype = h5py.string_dtype() if attribute else _LISTS
        values = np.empty(shape, dtype)
        values.reshape(-1)[:] = "x" if attribute else (np.zeros(1, "u1"),)
        values.reshape(-1)[0] = "x" * length if attribute else (np.zeros(length, "u1"),)
        if attribute:
            largest.attrs.create("dtype", values, dtype=dtype)
        else:
            del file[name]
            file[name] = values
    # Each has 16 bytes: the length, and a place, which no list begins with.
    found = bytearray(store.getvalue())
    start = re.search(re.escape(length.to_bytes(4, "little")) + rb"(?!\0{4})", found)
    first, size = start.start(), 16 * values.size
    found[first : first + size] = found[first : first + 16] * values.size
    return bytes(found)


def _put(file, name, array, random, outside):
    kind = random.randrange(12)
    if kind == 0:
        shape = random.choice([(10**12,), (2**31, 4), (10**6, 10**5)])
        file.create_dataset(name, shape, chunks=True, compression="gzip", dtype="f4")
    elif kind == 1:
        file[name] = h5py.ExternalLink(f"{outside}/secret.h5", "/secret")
    elif kind == 2:
        file[name] = h5py.SoftLink(random.choice(["/", f"/{name}", "/missing"]))
    elif kind == 3:
        parts = [(f"{outside}/secret.txt", 0, array.nbytes)]
        file.create_dataset(name, array.shape, array.dtype, external=parts)
    elif kind == 4:
        layout = h5py.VirtualLayout(array.shape, array.dtype)
        layout[...] = h5py.VirtualSource(f"{outside}/secret.h5", "secret", array.shape)
        file.create_virtual_dataset(name, layout)
    elif kind == 5:
        file[name] = ["text"] * 4
    elif kind == 6:
        file[name] = file["/"]
    elif kind == 7:
        file[name] = array.reshape(-1)[: random.randrange(array.size + 1)]
    elif kind == 8:
        dtypes = ["float16", "float64", "int64", "complex64", "bool"]
        file[name] = array.astype(random.choice(dtypes))
        file[name].attrs["dtype"] = random.choice(["bfloat16", "object", 7])
    elif kind == 9:
        file[name] = np.full_like(array, random.choice([np.nan, np.inf, 1e30]))
    elif kind == 10:
        dtypes = [_LISTS, "f4,f4", h5py.vlen_dtype("f4"), h5py.ref_dtype]
        file.create_dataset(name, array.shape, random.choice(dtypes))
    else:
        file.create_group(name)


def parts_of(content):
    """Return the names and contents of an archive's parts."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def archive_of(parts, *, compressed=(), links=(), comment=b""):
    """Return an archive with all its checksums right."""
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as archive:
        for name, content in parts:
            info = zipfile.ZipInfo(name)
            if name in compressed:
                info.compress_type = zipfile.ZIP_DEFLATED
            if name in links:
                info.external_attr = 0o120777 << 16
            archive.writestr(info, content)
        archive.comment = comment
    return store.getvalue()


def _mutate_parts(parts, random, outside):
    """Change the list of parts; return it and options for `archive_of`."""
    parts, names = list(parts), [name for name, _ in parts]
    i = random.randrange(len(parts))
    strange = [
        "../evil",
        f"{outside}/made",
        "assets/../../evil",
        "assets/a",
        "a\\b",
        "",
    ]
    kind = random.randrange(6)
    if kind == 0:
        del parts[i]
    elif kind == 1:
        parts.append((random.choice(strange), b"evil"))
    elif kind == 2:
        parts[i] = (random.choice(strange + names), parts[i][1])
    elif kind == 3:
        zeros = b"\0" * random.choice([10**4, 10**7])
        parts[i] = (names[i], parts[i][1] + zeros)
        return parts, {"compressed": (names[i],)}
    elif kind == 4:
        parts.append(("assets/link", str(outside).encode()))
        return parts, {"links": ("assets/link",)}
    else:
        parts[i] = (names[i], parts[random.randrange(len(parts))][1])
    return parts, {}


def mutate_wrapper(content, random, outside):
    """Return a changed `.keras` file."""
    if random.random() < 0.1:
        return mutate_bytes(content, random)
    parts, options, kind = parts_of(content), {}, random.random()
    if kind < 0.1:
        parts, options = _mutate_parts(parts, random, outside)
        return archive_of(parts, **options)
    contents = dict(parts)
    if kind < 0.75:
        contents[CONFIG] = mutate_json(contents[CONFIG], random, outside)
    elif kind < 0.97:
        contents[WEIGHTS] = mutate_weights(contents[WEIGHTS], random, outside)
    else:
        contents[METADATA] = mutate_json(contents[METADATA], random, outside)
    return archive_of(contents.items())


def mutate_early_exit(content, random, outside):
    """Return a changed early-exit file, mostly with the digest that belongs to it."""
    if random.random() < 0.1:
        return mutate_bytes(content, random)
    parts, options, kind = parts_of(content), {}, random.random()
    contents = dict(parts)
    if kind < 0.15:
        parts, options = _mutate_parts(parts, random, outside)
    elif kind < 0.6:
        contents[SETTINGS] = mutate_json(contents[SETTINGS], random, outside)
        parts = contents.items()
    else:
        contents[MODEL] = mutate_wrapper(contents[MODEL], random, outside)
        parts = contents.items()
    return with_digest(archive_of(parts, comment=b"0" * DIGITS, **options))


def with_digest(content):
    """Return an early-exit file with the digest of its content at its end."""
    body = content[:-DIGITS]
    return body + hashlib.sha256(body).hexdigest().encode()


def mutate_checkpoint(content, random, outside):
    """Return a changed checkpoint, mostly with the digest that belongs to it."""
    if random.random() < 0.1:
        return mutate_bytes(content, random)
    head, _, body = content.partition(b"\n")
    parts, options, kind = parts_of(body), {}, random.random()
    contents = dict(parts)
    if kind < 0.15:
        parts, options = _mutate_parts(parts, random, outside)
    elif kind < 0.75:
        text = np.load(io.BytesIO(contents[ABOUT])).tobytes()
        changed = mutate_json(text, random, outside)
        contents[ABOUT] = _npy(np.frombuffer(changed, "uint8"))
        parts = contents.items()
    else:
        name = random.choice(sorted(contents))
        contents[name] = _mutate_npy(contents[name], random)
        parts = contents.items()
    body = archive_of(parts, **options)
    digest = hashlib.sha256(body).hexdigest().encode()
    return head[:-DIGITS] + digest + b"\n" + body


def _mutate_npy(content, random):
    """Return an array of NumPy's format that is not what it says, or another."""
    kind = random.randrange(4)
    if kind == 0:
        return _npy(np.array([{"a": 1}], object))
    if kind == 1:
        shape = random.choice([(10**10,), (10**20,), (2**31, 2**31), (-1,), (9, 0)])
        descr = random.choice(["<f4", "|u1", "|S99999", "|O", "<f4, <f4"])
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        store = io.BytesIO()
        np.lib.format.write_array_header_1_0(store, header)
        return store.getvalue() + content[-64:]
    if kind == 2:
        return _npy(np.zeros(random.choice([0, 3, (2, 2)]), random.choice("fdbOSU")))
    return mutate_bytes(content, random)


def _npy(array):
    store = io.BytesIO()
    np.save(store, array)
    return store.getvalue()


def mutate_folder(files, random, outside):
    """Return the files of a changed exported folder; a string is a link's target."""
    files, kind = dict(files), random.random()
    name = random.choice(sorted(files))
    if kind < 0.75:
        files["manifest.json"] = mutate_json(files["manifest.json"], random, outside)
    elif kind < 0.85:
        files[name] = mutate_bytes(files[name], random)
    elif kind < 0.95:
        files[name] = random.choice([f"{outside}/secret.txt", None])
    else:
        del files[name]
    return files


def mutate_run(files, random, outside):
    """Return the files of a training's folder, with others that look like them."""
    ((name, content),) = files.items()
    files = dict(files)
    if random.random() < 0.3:
        files[name] = mutate_checkpoint(content, random, outside)
    for _ in range(random.choice([1, 2, 5])):
        epoch, batch = random.choice([0, 1, 7, 10**6, 10**9]), random.randrange(3)
        other = random.choice(
            [
                f"epoch_{epoch:06d}_batch_{batch:08d}.checkpoint",
                f"epoch_{epoch:06d}_batch_{batch:08d}_best.checkpoint",
                f"epoch_{epoch}_batch_{batch}.checkpoint",
                ".unfinished.checkpoint",
                ".keras_selfdistill_abcdefgh",
            ]
        )
        links = [f"{outside}/secret.txt", str(outside), f"{outside}/made"]
        left = _left_by_a_kill(random, [*links, "..", content, {}, {"kept": {}}])
        files.setdefault(other, random.choice([*links, None, left, content, b""]))
    return files


def _left_by_a_kill(random, kinds):
    """Return a folder like one that a killed write leaves, or one made to look so."""
    left = {each: random.choice(kinds) for each in ("new", "old")}
    if random.random() < 0.3:
        left["old"] = {"moved": random.choice(kinds)}
    if random.random() < 0.3:
        del left[random.choice(["new", "old"])]
    return left
