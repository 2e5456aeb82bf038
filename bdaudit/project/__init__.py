"""The project file: what an audit is run on and with, written down once."""

from bdaudit.project.manifest import read_manifest
from bdaudit.project.reading import Project, find_project, read_project
from bdaudit.project.schema import ProjectFile, json_schema

__all__ = ["Project", "ProjectFile", "find_project", "json_schema", "read_manifest", "read_project"]
