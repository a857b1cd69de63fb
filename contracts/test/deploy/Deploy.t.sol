// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Test} from "forge-std/Test.sol";

import {Deploy} from "../../script/Deploy.s.sol";
import {ChannelEscrow} from "../../src/ChannelEscrow.sol";

contract DeployTest is Test {
    Deploy private _deploy;

    function setUp() public {
        _deploy = new Deploy();
    }

    /// @dev The script carries the bytes that the other tests test, and that the Go bindings carry.
    function testFuzz_creationCode(uint40 grace) public view {
        bytes memory tested = vm.getCode("out/ChannelEscrow.sol/ChannelEscrow.json");
        assertEq(keccak256(_deploy.creationCode(grace)), keccak256(bytes.concat(tested, abi.encode(grace))));
    }

    function test_deploy_atThePredictedAddress() public {
        ChannelEscrow escrow = _deploy.run();

        assertEq(address(escrow), _deploy.predict(1 days, 0));
        assertEq(escrow.gracePeriod(), 1 days);
    }

    function test_deploy_againChangesNothing() public {
        ChannelEscrow first = _deploy.run();
        assertEq(address(_deploy.run()), address(first));
    }

    /// @dev The address depends on the code and the grace period, and on no chain.
    function testFuzz_predict(uint40 one, uint40 other, bytes32 salt, uint64 chain) public {
        vm.assume(one != other && chain != 0 && salt != 0);
        address here = _deploy.predict(one, 0);
        assertTrue(here != _deploy.predict(other, 0));
        assertTrue(here != _deploy.predict(one, salt));
        vm.chainId(chain);
        assertEq(_deploy.predict(one, 0), here);
    }
}
