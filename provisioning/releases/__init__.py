"""Releases: a firmware under a name, with its version, the models that it fits and a configuration template.

- `records` is what a release is, with every limit, and the errors; `template` fills its configuration in;
- `firmware` is the bytes: files in the state directory, and a few of them in memory;
- `archive` writes them into ZIP archives without copying them;
- `store` keeps releases in the registry's file; `fitting` says which devices one does not fit;
- `uploads` takes multipart/form-data from the wire to the disk, `api` is the routes.
"""
