import os as _os

# In a checkout mv2_jax/train is a link to ../train, and so are three more. Where links came as
# text files or not at all (Windows without them, a zip, an sdist), the folders beside this one are
# the packages: else they would be taken, unseen, from another checkout that is installed.
if not _os.path.isdir(_os.path.join(__path__[0], "train")):
    __path__.append(_os.path.dirname(__path__[0]))
