"""An instance (tenant) and what can be set for it."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from server.base.models import Host
from server.base.strict import Strict
from server.outside.graph import Office365


class PasswordPolicy(Strict):
    """What an instance asks of passwords, beyond 1 to 1,024 characters."""

    minLength: int = Field(1, ge=1, le=128, description="Fewest characters.")
    minClasses: int = Field(
        1, ge=1, le=4, description="How many of lower case, upper case, digits and others must occur."
    )
    refuseCommon: bool = Field(
        False, description="True refuses the 10,000 most common passwords, in any case."
    )


Mebibytes = Annotated[int, Field(ge=0, lt=2**31)]


class GeneratedPasswords(Strict):
    """How passwords are made for users who are given none."""

    length: int = Field(12, ge=8, le=128, description="Characters.")
    specialSymbols: bool = Field(False, description="Whether there is one of !#$%&*+-=?@ in each.")
    mixedCase: bool = Field(True, description="Whether there are small and capital letters in each.")


class DefaultQuotas(Strict):
    """What users may store who have no quota of their own."""

    mail: Mebibytes | None = Field(None, description="MiB of mail; null: any.")
    files: Mebibytes | None = Field(None, description="MiB of files; null: any.")


class InstanceSettings(Strict):
    """What can be set for each instance."""

    passwordPolicy: PasswordPolicy = Field(default_factory=PasswordPolicy)
    retentionDays: int | None = Field(
        None, ge=0, le=3650, description="Days a deleted user is kept; null: the server's setting."
    )
    generatedPasswords: GeneratedPasswords = Field(default_factory=GeneratedPasswords)
    confirmationHosts: list[Host] = Field(
        default_factory=list, max_length=100, description="Hosts that links in mails may lead to."
    )
    httpConfirmationHosts: list[Host] = Field(
        default_factory=list,
        max_length=100,
        description="Hosts that links in mails may lead to by http, too. Codes in such links can be read "
        "on their way.",
    )
    positionsByHand: bool = Field(
        False, description="True: a new account gets no place in tree 0 until addToTree gives it one."
    )
    provisioningEnabled: bool = Field(
        True, description="False refuses every request about its users in Workspace 365's format."
    )
    office365: Office365 | None = Field(None, description="For createInOffice365; null: not possible.")
    maxUsers: int | None = Field(
        None, ge=1, lt=2**53, description="Seats: users that are not deleted, suspended ones too; null: any."
    )
    defaultQuotas: DefaultQuotas = Field(default_factory=DefaultQuotas)
    ratePerMinute: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Calls a minute of all its keys together, in each worker; 0: any, null: the server's "
        "setting.",
    )


@dataclass(frozen=True, slots=True)
class Instance:
    """A tenant, as a call sees it."""

    id: int
    name: str
    is_active: bool
    settings: InstanceSettings
